"""Scoring: rows in, a table of scores out. No Ray here."""
