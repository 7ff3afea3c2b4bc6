"""Read and parse the source files of a folder, sorted by path. Files that cannot be read or parsed are counted.

No module is imported or run.
"""

import ast
import io
import os
import stat
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mftcoder.curation.mining.languages.grammars import C_HEADER, LANGUAGES
from mftcoder.curation.syntax import parse

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "site-packages", "dist-packages", "node_modules", "build", "dist", "venv", "lib2to3", "turtledemo"}
)
VENDORED_FOLDERS = frozenset({"vendor", "third_party", "thirdparty", "target", "bower_components"})
"""Folders of other people's code in languages other than Python."""
MAX_FILE_BYTES = 1_000_000
MAX_LINE_CHARS = 2_000  # of a file that a person writes, in a language with braces
UNKNOWN = "unknown"


@dataclass(frozen=True)
class SourceModule:
    """One parsed file. `path` is relative to the mined folder, with forward slashes. `tree` is `ast`'s for Python, else tree-sitter's."""

    path: str
    text: str
    tree: Any
    language: str = "python"
    license: str = UNKNOWN
    folders: tuple[str, ...] | None = None
    """The packages that a Python file lies in, outermost first; None: the folders of `path`."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that a Python file lies in, outermost first."""
        return tuple(self.path.split("/")[:-1]) if self.folders is None else self.folders


def is_test(path: str) -> bool:
    """Whether a file holds tests, judged by its path."""
    *folders, name = path.split("/")
    if {"test", "tests", "testing", "idle_test"} & set(folders):
        return True
    if name.endswith(".py"):
        return name.startswith("test_") or name.endswith("_test.py")
    stem, lowered = name.split(".")[0], name.rsplit(".", 1)[0].lower()
    in_tests = bool({"__tests__", "spec", "benches", "unittests"} & set(folders))
    is_named = lowered.startswith("test_") or lowered.endswith(("_test", "_tests", "_unittest", ".test", ".spec"))
    return in_tests or is_named or stem.endswith(("Test", "Tests")) or (name.endswith(".java") and stem[:4] == "Test")


def standard_library() -> Path:
    """The folder of the standard library of the running interpreter."""
    return Path(sysconfig.get_paths()["stdlib"])


def language_of(name: str) -> str:
    """The language of a file name, by its suffix; empty for none of ours."""
    suffix = Path(name).suffix
    if suffix == C_HEADER:
        return "cpp"
    return next((language for language, grammar in LANGUAGES.items() if suffix in grammar.suffixes), "")


def source_files(folder: Path, languages: Collection[str], skips: Counter[str]) -> list[Path]:
    """The files of these languages below `folder`, sorted. Hidden, vendored and built folders are left out.

    Links to folders, repositories inside this one (submodules among them) and folders that cannot be read are counted.
    """
    found: list[Path] = []

    def unreadable(_: OSError) -> None:
        skips["folder: cannot be read"] += 1

    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [name for name in folders if _is_ours(Path(parent, name), skips)]
        in_vendored = not VENDORED_FOLDERS.isdisjoint(Path(parent).relative_to(folder).parts)
        for name in names:
            language = language_of(name)
            if language in languages and not (in_vendored and language != "python"):
                found.append(Path(parent, name))
    if not any(file.suffix in LANGUAGES["cpp"].suffixes for file in found):
        found = [file for file in found if file.suffix != C_HEADER]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _is_ours(folder: Path, skips: Counter[str]) -> bool:
    """Whether a folder is walked into."""
    if folder.name in SKIPPED_FOLDERS or folder.name.startswith("."):
        return False
    reason = ""
    if folder.is_symlink():
        reason = "a link"
    elif os.path.lexists(folder / ".git"):
        reason = "a repository inside this one"
    skips[f"folder: {reason}"] += bool(reason)
    return not reason


def read_modules(
    folder: Path, files: list[Path], skips: Counter[str], license_of: Callable[[str, str], str] | None = None
) -> Iterator[SourceModule | None]:
    """One item for each file, so that a caller can show progress. None for a file that was skipped; `skips` counts the reasons.

    `license_of(path, text)` names the licence of a file.
    """
    for file in files:
        path = file.relative_to(folder).as_posix()
        try:
            module = read_source(path, _bytes_of(file))
        except READ_ERRORS as error:
            skips[f"file: {_reason(error)}"] += 1
            yield None
        else:
            module = replace(module, folders=packages_of(folder, path))
            yield replace(module, license=license_of(path, module.text)) if license_of else module


def packages_of(folder: Path, path: str) -> tuple[str, ...]:
    """The packages of a file, from the outermost folder with an `__init__.py` on: `src/ours/a.py` lies in `ours`.

    Where no folder has one, all folders below `folder` count. `folder` may be a package itself, or lie in one.
    """
    folders = path.split("/")[:-1]
    if _is_package(folder):
        return (*_packages_above(folder.resolve()), *folders)
    outermost = next((n for n in range(len(folders)) if _is_package(folder.joinpath(*folders[: n + 1]))), 0)
    return tuple(folders[outermost:])


def _packages_above(folder: Path) -> list[str]:
    return [*_packages_above(folder.parent), folder.name] if folder.name and _is_package(folder) else []


def _is_package(folder: Path) -> bool:
    is_project = any((folder / name).exists() for name in (".git", "pyproject.toml", "setup.py"))
    return (folder / "__init__.py").is_file() and not is_project  # some projects have a stray one at their root


READ_ERRORS = (SyntaxError, ValueError, RecursionError, MemoryError, OSError)
"""What reading and parsing a file of any content can raise."""


class FileRefusedError(ValueError):
    """The file is no module that a person writes. The text is the reason, which is counted."""


def _bytes_of(file: Path) -> bytes:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise FileRefusedError("not a regular file")
    if status.st_size > MAX_FILE_BYTES:
        raise FileRefusedError("over 1 MB")
    return file.read_bytes()


def read_source(path: str, data: bytes) -> SourceModule:
    """The parsed content of a file; one of READ_ERRORS if it is not code that a person writes."""
    language = language_of(path)
    text = _python_text(data) if language == "python" else _text(data)
    tree = _parse(text, language)
    if tree is None:
        raise FileRefusedError("does not parse")
    return SourceModule(path, text, tree, language)


def _python_text(data: bytes) -> str:
    """The text in the encoding of its coding line or byte order mark, as Python reads it."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    with io.TextIOWrapper(io.BytesIO(data), encoding) as stream:
        return stream.read()


def _text(data: bytes) -> str:
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        raise FileRefusedError("unknown or wrong encoding")
    if any(len(line) > MAX_LINE_CHARS for line in text.split("\n")):
        raise FileRefusedError("minified or generated")
    return text


def _parse(text: str, language: str) -> Any:
    """The tree of a module. Trees of tree-sitter can have errors in them; functions with an error are left out later."""
    if language != "python":
        return parse(text, language)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for example of an invalid escape in the mined code
        return ast.parse(text)


def _reason(error: BaseException) -> str:
    if isinstance(error, FileRefusedError):
        return str(error)
    if isinstance(error, UnicodeDecodeError) or "encod" in str(error) or "codec" in str(error):
        return "unknown or wrong encoding"
    return "cannot be read" if isinstance(error, OSError) else "does not parse"
