"""Which training images made a model so."""
