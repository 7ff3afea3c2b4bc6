"""Commands that check a run, train, and compare runs."""
