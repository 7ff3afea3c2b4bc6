"""`mft export --verify`: is a model folder still what was exported? Needs no torch."""

from pathlib import Path

from rich.console import Console

from mftcoder.errors import ModelError
from mftcoder.models.files.manifest import verify


def verify_folder(folder: Path) -> None:
    """Print that all is well; ModelError that names every bad file otherwise."""
    problems = verify(folder)
    if problems:
        raise ModelError(*problems)
    Console().print(f"{folder}: every file is as it was written", highlight=False, soft_wrap=True)
