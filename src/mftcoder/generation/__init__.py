"""Prompts in, completions out: the engine protocol and one file an engine."""
