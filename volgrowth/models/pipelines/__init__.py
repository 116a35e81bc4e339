"""Diffusers pipelines: what a folder holds, and how each part is loaded."""
