"""Images drawn from the model, and the search for images near to them. No Ray here."""
