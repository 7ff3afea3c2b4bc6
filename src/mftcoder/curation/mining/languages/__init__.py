"""Functions, tests, spans and bugs of the languages that tree-sitter parses. Python's functions, tests and bugs come from `ast`."""
