"""One small reader for each public corpus, and for each foreign format."""
