"""The walls around a program."""
