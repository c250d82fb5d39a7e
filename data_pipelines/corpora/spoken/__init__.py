"""Corpora of speech: read and spontaneous, by language, speaker, emotion and intent, and vocal sounds."""
