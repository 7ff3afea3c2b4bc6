"""The command `mft`: options in, one call into app/ out. User errors become lines and exit code 2.

`group.py` holds the entry point and exit codes, the other files the commands; nothing heavy is imported here.
"""

from mftcoder.cli import results, scoring, training
from mftcoder.cli.group import cli, main

__all__ = ["cli", "main", "results", "scoring", "training"]
