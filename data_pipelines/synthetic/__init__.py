"""Data that are made: speech in synthetic voices, rooms and noise, and the words of preference pairs."""
