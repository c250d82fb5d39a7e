"""Clips: the unit of made data, the draws that decide about it, and how clips become shards and come back."""
