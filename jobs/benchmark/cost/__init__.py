"""The cost of an audit: speed, scale, soak."""
