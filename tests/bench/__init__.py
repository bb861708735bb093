"""`make bench`: the figures of docs/bench.json. docs/benchmarks.md says how each one is taken."""
