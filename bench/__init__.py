"""Benchmarks that anyone can run: `python -m bench.NAME --help`, `make bench` for all of them.

Each compares with a limit or a baseline in the same run, on private servers with durability at its defaults (fsync on commit,
MySQL's binary log on and synced), and fails when what it measured did not do its work.
"""

NAMES = ("drain", "calls", "pickup", "waiting", "depth", "crowd", "submit", "pacing", "queues", "memory", "footprint", "startup")
