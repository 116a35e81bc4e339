"""What scores mean: calibration on complexity, duplicates, how well a score detects. Needs neither torch nor ray."""
