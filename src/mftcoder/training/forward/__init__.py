"""The model's forward pass in training, and the check that packing does not change its results."""
