"""Truth as users have it: colour, copies that the world has altered, latents, classes and captions."""
