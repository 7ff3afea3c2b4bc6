"""Answers in other languages: built, run, and their passes proved."""
