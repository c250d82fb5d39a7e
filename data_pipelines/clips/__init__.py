"""Clips: the unit of made data, how clips are grouped and split, and how they become shards and come back."""
