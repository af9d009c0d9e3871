"""Benchmarks that anyone can run: `python -m bench.NAME`. Each compares with something in the same run."""
