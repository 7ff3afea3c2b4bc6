"""Verbs that export and report what was trained."""
