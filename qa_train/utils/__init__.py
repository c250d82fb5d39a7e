"""Small helpers that packages without a common room share: atomic files, keyed draws, masking, progress, retries ...

Imports nothing of qa-train, torch or transformers.
"""
