"""What an audit costs: speed, scale, soak."""
