"""Tests of a function by language: what they may hold, how they run, and the file that a user gets."""
