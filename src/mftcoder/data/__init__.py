"""From JSONL records to tensors: dialects, templates, tokens, rows, mixture. Torch-free but for the loader."""
