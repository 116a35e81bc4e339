"""What a worker computes: rows in, a table of scores out. No Ray here."""
