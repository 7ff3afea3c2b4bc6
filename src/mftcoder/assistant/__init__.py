"""A code assistant on top of a model that is not trusted: every answer is checked, and code runs in the sandbox only."""
