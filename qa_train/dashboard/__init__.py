"""Runs shown and compared on one page, made from their files alone: `runs.find_runs`, `overview.render`.

Used by `qa-train dashboard` (`qa_train.commands.dashboard`).
"""
