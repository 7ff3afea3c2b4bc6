"""Files of the working folder: read whole, named as `FILE:PLACE`, and written atomically where a user asks for it.

No path outside the folder is read or written, and a file that changed since it was read is not overwritten.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mftcoder.errors import ConfigError, reason
from mftcoder.jsonl import atomic_path
from mftcoder.registry import did_you_mean

MOST_BYTES = 1 << 20
SUFFIXES = {
    ".py": "python",
    ".java": "java",
    ".go": "go",
    ".rs": "rust",
    **dict.fromkeys((".js", ".mjs", ".cjs", ".jsx"), "javascript"),
    **dict.fromkeys((".cc", ".cpp", ".cxx", ".hpp", ".hh", ".hxx", ".h"), "cpp"),
}
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class SourceFile:
    """A file as it was read. Lines of `text` end with a line feed, whatever they end with in the file."""

    path: Path
    name: str  # within the working folder
    language: str
    text: str
    content: bytes

    @property
    def lines(self) -> list[str]:
        """The lines with their ends. Only a line feed ends a line, as in a syntax tree."""
        return re.findall(r"[^\n]*\n|[^\n]+", self.text)

    def bytes_of(self, text: str) -> bytes:
        """A text as this file would hold it: the same byte order mark, the same line ends."""
        if b"\r\n" in self.content:
            text = text.replace("\n", "\r\n")
        return (_BOM if self.content.startswith(_BOM) else b"") + text.encode()


class WorkingFolder:
    """The folder that the assistant may read and, where it is asked to, write."""

    def __init__(self, folder: Path):
        self.root = folder.expanduser().resolve()
        if not self.root.is_dir():
            raise ConfigError(f"{folder}: is no folder")

    def inside(self, name: str | Path) -> Path:
        """The path, with links followed. ConfigError if it leads out of the folder."""
        try:
            path = (self.root / Path(name).expanduser()).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{str(name)[:200]}: is no path: {reason(error)}") from error
        if not path.is_relative_to(self.root):
            raise ConfigError(f"{name}: lies outside the working folder {self.root}. Change --folder or the path")
        return path

    def read(self, name: str | Path) -> SourceFile:
        """A file of code. ConfigError for one that is too large, no UTF-8, or in no known language."""
        path = self.inside(name)
        language = SUFFIXES.get(path.suffix.lower())
        if language is None:
            raise ConfigError(f"{name}: the suffix is not one of {', '.join(sorted(SUFFIXES))}")
        content = read_bytes(path, str(name))
        try:
            text = content.removeprefix(_BOM).decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name}: is not UTF-8: {reason(error)}") from error
        plain = text.replace("\r\n", "\n")
        if "\r" in plain or "\0" in plain or text.count("\r\n") not in (0, text.count("\n")):
            raise ConfigError(f"{name}: mixes line ends, or holds NUL or lone carriage returns")
        return SourceFile(path, path.relative_to(self.root).as_posix(), language, plain, content)

    def replace(self, file: SourceFile, text: str) -> None:
        """Write another text into a file that was read. ConfigError if the file changed meanwhile."""
        is_moved = self.inside(file.name) != file.path  # a folder of the path is now a link
        if is_moved or read_bytes(file.path, file.name) != file.content:
            raise ConfigError(f"{file.name}: changed on disk since it was read; nothing is written. Ask again")
        if not file.path.stat().st_mode & 0o222:
            raise ConfigError(f"{file.name}: is read-only; nothing is written. `chmod u+w {file.name}` allows it")
        with atomic_path(file.path) as temporary:
            temporary.write_bytes(file.bytes_of(text))
            shutil.copymode(file.path, temporary)

    def create(self, name: str | Path, text: str) -> Path:
        """Write a file that does not exist yet. ConfigError if it does."""
        path = self.inside(name)
        if path.exists():
            raise ConfigError(f"{name}: exists already; nothing is written. Give another name with --out")
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return path


def read_bytes(path: Path, name: str, last: int | None = None) -> bytes:
    """The bytes of a file, or so many of its last. ConfigError if it cannot be read, or is too large to be read whole."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would wait for a writer
            raise ConfigError(f"{name}: is no plain file")
        size = path.stat().st_size if path.is_file() else 0
        if last is None and size > MOST_BYTES:
            raise ConfigError(f"{name}: has more than {MOST_BYTES >> 20} MB")
        with path.open("rb") as file:
            file.seek(0 if last is None else max(size - last, 0))
            return file.read()
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror or reason(error)}") from error


@dataclass(frozen=True)
class Place:
    """What a user points at: a file, and a function or a position in it."""

    file: str
    function: str = ""
    line: int = 0  # from 1; 0 for none
    column: int = 0  # from 1; 0 for the end of the line


def parse_place(text: str) -> Place:
    """`FILE`, `FILE:FUNCTION`, `FILE:LINE` or `FILE:LINE:COLUMN`."""
    position = re.fullmatch(r"(.+?):([0-9]{1,7})(?::([0-9]{1,7}))?", text, re.DOTALL)
    if position:
        if 0 in (int(position[2]), int(position[3] or 1)):
            raise ConfigError(f"{text}: lines and columns count from 1")
        return Place(position[1], "", int(position[2]), int(position[3] or 0))
    function = re.fullmatch(r"(.+):([^\W\d][\w.$]*)", text, re.DOTALL)
    if function:
        return Place(function[1], function[2])
    return Place(text)


def unknown_function(file: SourceFile, name: str, names: list[str]) -> ConfigError:
    """The error for a function that a file does not have."""
    known = did_you_mean(name, names[:50]) if names else " It has none that can be worked on."
    return ConfigError(f"{file.name}: has no function '{name}'.{known}")
