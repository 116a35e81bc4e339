"""The pictures of the report: which rows are shown, and one card for each."""
