"""Commands from a model to its scores."""
