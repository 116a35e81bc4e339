"""The detection bench, which compares how well scores find memorized images."""
