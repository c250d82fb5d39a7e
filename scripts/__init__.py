"""What only a checkout runs: the quickstart, benchmarks, checks and the pages that are generated."""
