"""Analysis of scores: calibration, duplicates, proof, policies and comparison. It needs neither torch nor ray."""
