"""Images drawn from the model, and what they are near to."""
