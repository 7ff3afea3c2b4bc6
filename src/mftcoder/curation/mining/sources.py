"""Read and parse the modules of a folder of Python code, sorted by path. Files that cannot be read or parsed are counted.

No module is imported or run.
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
    """Whether a file holds tests, judged by its path."""
    *folders, name = path.split("/")
    in_tests = bool({"test", "tests", "testing", "idle_test"} & set(folders))
    return in_tests or name.startswith("test_") or name.endswith("_test.py")


def standard_library() -> Path:
    """The folder of the standard library of the running interpreter."""
    return Path(sysconfig.get_paths()["stdlib"])


def python_files(folder: Path) -> list[Path]:
    """All .py files below `folder`, sorted. Hidden, vendored and built folders and links to folders are left out."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith(".")]
        found += [Path(parent, name) for name in names if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_modules(folder: Path, files: list[Path], skips: Counter[str]) -> Iterator[SourceModule | None]:
    """One item for each file, so that a caller can show progress. None for a file that was skipped; `skips` counts the reasons."""
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
    with tokenize.open(file) as stream:  # respects a coding line and a byte order mark
        return stream.read()


class FileTooLargeError(ValueError):
    """The file is larger than a module that a person writes."""


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for example of an invalid escape in the mined code
        return ast.parse(text)


def _reason(error: Exception) -> str:
    if isinstance(error, FileTooLargeError):
        return "over 1 MB"
    if isinstance(error, UnicodeDecodeError) or "encod" in str(error) or "codec" in str(error):
        return "unknown or wrong encoding"
    return "cannot be read" if isinstance(error, OSError) else "does not parse"
