"""Benchmarks: the table of them, readers of their official files, and the rules of those with rules of their own.

Above `scores`, below the flow of `qa_train.eval`. From outside: `table.find_benchmarks`, `layouts.read_rows`.
"""
