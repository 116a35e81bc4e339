"""Ray entry points, and the experiments behind docs/. Not in the wheel."""
