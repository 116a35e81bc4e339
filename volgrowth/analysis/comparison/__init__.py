"""Comparison of two audits: the images whose growth changed between them."""
