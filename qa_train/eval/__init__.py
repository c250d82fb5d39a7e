"""Evaluation: questions in, answers, scores, comparisons and reports out.

``scores`` is the lowest layer (pure functions), ``benchmarks`` builds on it, and the files of this folder are the flow:
questions, answers, predictions, scoring, comparison. It uses the model only through `qa_train.infer`, and never imports
training. From outside: `suite`, `questions`, `answers`, `eval_sets` and `ranks`.
"""
