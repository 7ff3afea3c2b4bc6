"""Commands that make data and show it."""
