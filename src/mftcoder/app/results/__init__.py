"""Verbs that hand on what was trained."""
