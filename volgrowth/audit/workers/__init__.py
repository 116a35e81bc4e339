"""What all workers share: the data sets, the model, seeds, and a batch size that fits the device. No Ray here."""
