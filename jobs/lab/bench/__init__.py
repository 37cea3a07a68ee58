"""Benches measure the numbers of README and cards, with intervals, and write them as tables and as JSON."""
