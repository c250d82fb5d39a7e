"""qa-train: the training recipe of Qwen2-Audio, from raw audio to a model that answers."""

__version__ = "0.1.0"
