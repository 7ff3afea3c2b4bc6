"""Verbs that generate and score."""
