"""Checkpoints in the form of Hugging Face: `hugging_face.export` writes and compares, `model_card` describes.

Imported by `qa_train.commands` and by nothing else.
"""
