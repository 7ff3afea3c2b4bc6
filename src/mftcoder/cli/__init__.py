"""The command `mft`: options in, one call into app/ out. User errors become lines and exit code 2.

`group.py` holds the entry point, the exit codes and the order of the commands, `options.py` what commands share. Every other file
is one command. Nothing heavy is imported here: a command imports its verb when it runs, so `mft --help` answers at once.
"""

from mftcoder.cli.group import cli, main

__all__ = ["cli", "main"]
