"""Small things that every package needs and that know none of them: progress, files that appear whole, keyed draws.

Imports nothing of qa-train.
"""
