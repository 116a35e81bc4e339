"""From scores to findings in parts: what many rows share is grouped by a database that keeps to a bounded memory."""
