"""Runs shown and compared on one page, made from their files alone: `overview.page`.

Used by `qa-train dashboard` (`qa_train.commands.dashboard`).
"""
