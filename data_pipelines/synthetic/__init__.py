"""Data that are made: speech, notes, rooms and noise, new sentences, spoken questions, preference pairs by rule."""
