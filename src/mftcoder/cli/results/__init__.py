"""Commands that hand on what was trained."""
