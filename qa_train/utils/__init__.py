"""Small helpers that every package may use: progress, atomic files, keyed draws.

Imports nothing of qa-train.
"""
