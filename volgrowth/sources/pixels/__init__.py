"""One encoded image becomes pixels and features."""
