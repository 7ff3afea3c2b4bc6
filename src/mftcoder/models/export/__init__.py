"""A trained model on disk: found, merged, written."""
