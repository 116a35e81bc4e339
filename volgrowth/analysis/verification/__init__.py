"""What samples of the model prove: images that they reproduce, and images that return from noise."""
