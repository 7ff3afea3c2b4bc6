"""Running untrusted programs: languages, sandbox, pool. Torch-free."""
