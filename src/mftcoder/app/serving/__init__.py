"""Use a model: serve it, talk to it."""
