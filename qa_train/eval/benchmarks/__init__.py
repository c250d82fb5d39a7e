"""Benchmarks: the table of them, readers of their official files, and benchmark-specific scoring rules.

Above `scores`, below the flow of `qa_train.eval`. From outside: `benchmark.Benchmark`, `table.find_benchmarks`,
`layouts.read_rows`.
"""
