"""The one client for language models behind an OpenAI-compatible endpoint, and the judge with its cache.

Imports only `utils` of qa-train. Used by evaluation, preference pairs and rewriting: `client.Endpoint`, `judge.Judge`.
"""
