"""`mft export --verify`: is a model folder still what was exported? Needs no torch."""

from pathlib import Path

from mftcoder.errors import ModelError
from mftcoder.models.files.manifest import verify


def verify_folder(folder: Path) -> None:
    """ModelError that names every file that is not as it was written."""
    problems = verify(folder)
    if problems:
        raise ModelError(*problems)
