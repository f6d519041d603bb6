"""Benchmarks: Loam and a peer on the same input in one call; `python -m tests.bench` lists them."""
