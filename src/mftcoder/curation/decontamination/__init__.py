"""Records that hold a problem of an exam: found by shared n-grams, by the same code under other names, or by the published rules."""
