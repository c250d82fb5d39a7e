"""Corpora of sounds and music: events, captions, notes, genres, questions about audio."""
