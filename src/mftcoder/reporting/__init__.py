"""Run folders and scores -> one HTML page and its Markdown twin. Torch-free."""
