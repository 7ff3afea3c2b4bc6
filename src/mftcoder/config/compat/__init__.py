"""Configs of other programs, read as ours."""
