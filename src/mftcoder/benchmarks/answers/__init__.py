"""From what a model wrote to code."""
