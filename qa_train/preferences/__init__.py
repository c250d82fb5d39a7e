"""Preference pairs from a model's own answers: `draw` asks, `rank` finds the best answer and the worst; `pair_accuracy`
measures which answer of held-out pairs a model prefers.

Builds on evaluation (questions, answers, scores) and `qa_train.llm`. From outside: `draw.sampled_pairs` and
`askable`, the rankers of `rank`; `from_answers.pairs` is all of `qa-train pairs`.
"""
