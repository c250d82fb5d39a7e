"""Using a model: generation, chat, and an OpenAI-compatible server."""
