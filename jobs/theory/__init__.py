"""The experiments of the second source (arXiv 2506.19031)."""
