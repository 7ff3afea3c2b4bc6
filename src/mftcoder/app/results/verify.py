"""`mft export --verify`: compare a model folder with its checksums. Needs no torch."""

from pathlib import Path

from mftcoder.errors import ModelError
from mftcoder.models.files.manifest import verify


def verify_folder(folder: Path) -> None:
    """Raise a ModelError that names every file that has changed since the export."""
    problems = verify(folder)
    if problems:
        raise ModelError(*problems)
