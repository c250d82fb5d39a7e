"""Checks of a composed configuration across its sections; each error names the key to change.

What the outside needs, `check` and `require_root`, is imported from `qa_train.config`.
"""
