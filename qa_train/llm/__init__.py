"""The one client for language models behind an OpenAI-compatible endpoint, and the judge with its cache.

Imports nothing of qa-train. Used by evaluation, preference pairs and rewriting: `client.Endpoint`, `judge.Judge`.
"""
