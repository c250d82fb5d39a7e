"""Making data: corpora, synthetic speech and notes, spoken chats, questions and preference pairs."""
