"""Rows that a model continues together, and their key-value caches."""
