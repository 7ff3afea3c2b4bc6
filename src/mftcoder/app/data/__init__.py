"""Verbs that make data."""
