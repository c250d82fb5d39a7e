"""Scores as pure functions: answers and references in, a number with its uncertainty out.

The lowest floor of `qa_train.eval`: no model and no benchmark is known here. From outside: `prediction.Prediction`,
`task_metrics.score` and the normalisation of `normalise`.
"""
