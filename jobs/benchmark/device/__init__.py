"""What only a GPU can tell: `python jobs/benchmark.py gpu --output DIR`, one JSON line a result."""
