"""A folder of Python code -> its parsed modules, in a fixed order; what cannot be read or parsed is counted, never fatal.

Goes in: a folder. Comes out: `SourceModule`s (path below the folder, text, syntax tree) sorted by path. Imports and runs nothing.
"""

import ast
import os
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "node_modules", "build", "dist", "venv", "lib2to3", "turtledemo"}
)
MAX_FILE_BYTES = 1_000_000


@dataclass(frozen=True)
class SourceModule:
    """One parsed file. `path` is relative to the mined folder, with forward slashes."""

    path: str
    text: str
    tree: ast.Module


def is_test(path: str) -> bool:
    """Whether a file, by its path, holds tests rather than the code they test."""
    *folders, name = path.split("/")
    in_tests = bool({"test", "tests", "testing", "idle_test"} & set(folders))
    return in_tests or name.startswith("test_") or name.endswith("_test.py")


def standard_library() -> Path:
    """The folder of the running interpreter's own Python modules."""
    return Path(sysconfig.get_paths()["stdlib"])


def python_files(folder: Path) -> list[Path]:
    """All .py files below `folder`, sorted; hidden, vendored and built folders are passed over, links to folders not followed."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(".")]
        found += [Path(parent, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_modules(folder: Path, files: list[Path], skips: Counter[str]) -> Iterator[SourceModule | None]:
    """One item a file, None where it was skipped (the reason is counted in `skips`), so that a caller can show progress."""
    for file in files:
        reason, text, tree = "", "", None
        try:
            text = _text_of(file)
            tree = _parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OSError) as error:
            reason = _reason(error)
        if tree is None:
            skips[f"file: {reason}"] += 1
            yield None
        else:
            yield SourceModule(file.relative_to(folder).as_posix(), text, tree)


def _text_of(file: Path) -> str:
    if file.stat().st_size > MAX_FILE_BYTES:
        raise FileTooLargeError
    with tokenize.open(file) as stream:  # honours a coding line and a byte order mark
        return stream.read()


class FileTooLargeError(ValueError):
    """The file is larger than a module written by hand."""


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape in somebody's source is not our reader's business
        return ast.parse(text)


def _reason(error: Exception) -> str:
    if isinstance(error, FileTooLargeError):
        return "over 1 MB"
    if isinstance(error, UnicodeDecodeError) or "encod" in str(error) or "codec" in str(error):
        return "unknown or wrong encoding"
    return "cannot be read" if isinstance(error, OSError) else "does not parse"
