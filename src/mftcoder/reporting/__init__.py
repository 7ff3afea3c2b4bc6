"""Reports: run folders and scores -> one HTML page and the same in Markdown. Torch-free."""
