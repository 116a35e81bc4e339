"""Cases whose memorization is known, because they are planted, trained and sampled here: demo, bench, experiments."""
