"""Evaluation: questions in, answers, scores, comparisons and reports out.

``scores`` is the ground floor (pure functions), ``benchmarks`` stands on it, and the files of this folder are the flow:
questions, answers, predictions, scoring, comparison. It knows the model only through `qa_train.infer`, and never
training. From outside: `suite`, `questions`, `answers`, `eval_sets` and `ranks`.
"""
