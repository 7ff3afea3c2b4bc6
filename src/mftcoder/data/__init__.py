"""From JSONL records to tensors: dialects, templates, tokens, rows, mixture. Only the loader needs torch."""
