"""What benchmark.py measures, how, and how it reports it."""
