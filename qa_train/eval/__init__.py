"""Evaluation: benchmarks, answers, scores, judges, comparisons and reports."""
