"""Names of the files that hold drawn images, and how many each holds. Whoever only reads them needs no torch."""

FOLDER = "verification"
AT_ONCE = 128
"""Images a file."""
SAMPLE = "sample"
STOPPED = "stopped"
DECODED = "decoded"
