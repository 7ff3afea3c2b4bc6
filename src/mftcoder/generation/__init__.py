"""From prompts to completions: the engine protocol, and one file per engine."""
