"""What a synthesis starts from: topics of a text file, records of any dialect, pieces of source code."""

import hashlib
import itertools
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mftcoder.cache import cache_root
from mftcoder.config.problems import one_line
from mftcoder.curation.example import Example
from mftcoder.curation.mining.sources import MAX_FILE_BYTES, SKIPPED_FOLDERS
from mftcoder.curation.synthesis.work import Collected, DroppedError
from mftcoder.data.records.files import lines_of
from mftcoder.data.records.formats import read_record
from mftcoder.errors import DataError

LANGUAGES = {
    ".py": "Python", ".java": "Java", ".js": "JavaScript", ".mjs": "JavaScript", ".ts": "TypeScript", ".go": "Go", ".rs": "Rust",
    ".c": "C", ".h": "C", ".cc": "C++", ".cpp": "C++", ".hpp": "C++", ".cs": "C#", ".php": "PHP", ".rb": "Ruby", ".kt": "Kotlin",
    ".swift": "Swift", ".scala": "Scala", ".sh": "Bash", ".sql": "SQL",
}  # fmt: skip
"""File extension -> language of a piece of code."""
_LONGEST_LINE = 300
_LEAST_CHARACTERS = 40


@dataclass(frozen=True)
class Topic:
    """A line of a topics file."""

    text: str
    origin: str


@dataclass(frozen=True)
class Snippet:
    """A run of lines of a source file."""

    text: str
    language: str
    origin: str


def read_topics(path: Path) -> list[Topic]:
    """The topics, each once. DataError if there is none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    found: dict[str, Topic] = {}
    for number, line in enumerate(lines, start=1):
        text = " ".join(line.split())
        if text and not text.startswith("#"):
            found.setdefault(text, Topic(text, f"{path}:{number}"))
    if not found:
        raise DataError(f"{path}: holds no topic. Write one a line")
    return list(found.values())


def read_examples(paths: Sequence[str], task: str, collected: Collected) -> list[Example]:
    """The conversations of data files; a line that cannot be used is dropped."""
    found = []
    for origin, line in lines_of(paths, task, cache_root()):
        try:
            found.append(Example(read_record(line, format="auto", task=task, origin=origin), line))
        except DataError as error:
            problem = one_line("; ".join(error.problems))
            collected.drop((-1,), task, DroppedError("read", "unusable", problem), origin)
    if not found:
        raise DataError(f"{', '.join(paths)}: holds no usable record")
    return found


def choose_snippets(folder: Path, count: int, most_lines: int, seed: int) -> list[Snippet]:
    """At most `count` different pieces, one a file until all files had their turn. DataError if there is no code."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    files = list(_source_files(folder))
    generator = random.Random(seed)
    generator.shuffle(files)
    chosen: dict[str, Snippet] = {}
    rounds = [_snippets_of(folder, path, most_lines, seed) for path in files]
    for piece in itertools.chain.from_iterable(itertools.zip_longest(*rounds)):
        if len(chosen) == count:
            break
        if piece is not None:
            chosen.setdefault(piece.text, piece)
    if not chosen:
        known = ", ".join(sorted(LANGUAGES))
        raise DataError(f"{folder}: holds no code to take pieces of. Known file names end in {known}")
    return list(chosen.values())


def _source_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix in LANGUAGES and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
                yield path


def _snippets_of(folder: Path, path: Path, most_lines: int, seed: int) -> Iterator[Snippet]:
    """Runs of lines that do not overlap, in a random order; the file's path and content give the seed."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    name = path.relative_to(folder).as_posix()
    digest = hashlib.sha256(f"{seed}:{name}:{text}".encode()).digest()
    generator = random.Random(digest)
    lines = text.splitlines()
    starts = list(range(0, len(lines), most_lines))
    generator.shuffle(starts)
    for start in starts:
        size = generator.randint((most_lines + 1) // 2, most_lines)
        piece = "\n".join(lines[start : start + size]).strip("\n")
        if len(piece.strip()) >= _LEAST_CHARACTERS and max(map(len, piece.splitlines())) <= _LONGEST_LINE:
            yield Snippet(piece, LANGUAGES[path.suffix], f"{path}:{start + 1}")
