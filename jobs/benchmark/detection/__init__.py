"""Which score finds what."""
