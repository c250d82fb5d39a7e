"""What the quickstart is trained on besides the starter data: notes, questions, new sentences; `build` makes it."""
