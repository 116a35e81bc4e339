"""A gate for continuous integration: it passes, fails, or says that it cannot tell."""
