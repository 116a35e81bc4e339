"""Measurements of detection and of cost."""
