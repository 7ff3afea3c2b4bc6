"""The model's forward pass inside a step."""
