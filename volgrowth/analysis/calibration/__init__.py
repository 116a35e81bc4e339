"""Calibration: the score that an image of its complexity shows anyway, p-values of the excess, and error rates."""
