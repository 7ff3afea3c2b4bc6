"""The files of a task, the hashes of their content, and their raw lines in blocks. Other modules parse the lines."""

import gzip
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import orjson
import xxhash

from mftcoder.config.data import TaskConfig
from mftcoder.config.kinds import TOKENS_ENDING, PretrainKind
from mftcoder.errors import DataError
from mftcoder.hub import hub_errors
from mftcoder.jsonl import atomic_path, write_jsonl
from mftcoder.log import warn

ENDINGS = (".jsonl", ".jsonl.gz")
_NOT_PLAIN = (*ENDINGS, TOKENS_ENDING)
BLOCK_BYTES = 4 << 20
MAX_LINE_BYTES = 256 << 20


@dataclass(frozen=True)
class SourceFile:
    """One data file. `name` is its path below the task's folder; `digest` identifies its content.

    The plain files of a task are one SourceFile: each of its `documents` stands for a line, and `path` is the folder of them all.
    """

    path: Path
    name: str
    size: int
    digest: str
    documents: tuple[str, ...] = ()

    @property
    def has_tokens(self) -> bool:
        """Whether this is a Megatron token file: `path` is its index, and each of its documents stands for a line."""
        return self.path.suffix == TOKENS_ENDING and not self.documents

    def origin(self, line: int) -> str:
        return self.documents[line - 1] if self.documents else f"{self.path}:{line}"


@dataclass(frozen=True)
class TaskSources:
    """The files of one task, each list in the order of their names."""

    training: tuple[SourceFile, ...]
    validation: tuple[SourceFile, ...]


def find_sources(tasks: Sequence[TaskConfig], cache: Path) -> list[TaskSources]:
    """The files of every task; DataError lists all that are missing or of the wrong kind."""
    identities = _Identities(cache / "identities.json")
    problems: list[str] = []
    found = []
    for task in tasks:
        try:
            validation = [file for path in task.validation for file in _expand(path, task, cache)]
            given = task.files or (task.path or "",)
            training = [file for path in given for file in _expand(path, task, cache)]
        except DataError as error:
            problems += error.problems
            continue
        held_out = {path.resolve() for path, _ in validation}
        kept = [(path, name) for path, name in training if path.resolve() not in held_out]
        if not kept:
            problems.append(f"{task.path or 'files'}: task '{task.name}': all of its files are validation files")
        found.append(TaskSources(identities.describe(kept), identities.describe(validation)))
    if problems:
        raise DataError(*problems)
    identities.save()
    return found


def _expand(given: str, config: TaskConfig, cache: Path) -> list[tuple[Path, str]]:
    """`(file, name)` for a file, for every data file below a folder, or for a dataset of the Hub."""
    path, task = Path(given).expanduser(), config.name
    endings = _endings(config)
    if TOKENS_ENDING in endings:
        from mftcoder.data.records.megatron import index_path  # numpy, which only token files need

        path = index_path(path)
    if (path / "manifest.json").is_file() and (path / "card.html").is_file():
        raise DataError(
            f"{given}: task '{task}': is a whole folder of `mft data`, with validation and dropped records in it. "
            f"Write `tasks: {given}` for all of its tasks, or name the folder of one task in it"
        )
    if path.is_dir():
        return _files_below(path, task, endings)
    if path.is_file():
        if not path.name.endswith(endings):
            raise DataError(f"{given}: task '{task}': is not a {_either(endings)} file")
        return [(path, path.name)]
    if path.exists():
        raise DataError(f"{given}: task '{task}': is neither a file nor a folder")
    if given.count("/") == 1 and not given.startswith((".", "~", "/")) and not given.endswith(ENDINGS):
        return [(_hub_dataset(given, cache), given)]
    raise DataError(f"{given}: task '{task}': no such file or folder")


def _endings(task: TaskConfig) -> tuple[str, ...]:
    """The endings of the files that a task reads: records, and of documents also token files and plain files."""
    if not isinstance(task.kind, PretrainKind):
        return ENDINGS
    return (*ENDINGS, TOKENS_ENDING, *task.kind.suffixes)


def _hub_dataset(identifier: str, cache: Path) -> Path:
    """The `train` split of a dataset on the Hub as a .jsonl.gz file in the cache, one for each revision."""
    advice = "Give a folder, a .jsonl file, or the id of a dataset on the Hub."
    with hub_errors(f"{identifier}: no such file or folder", advice=advice, kind=DataError):
        import datasets  # slow to import, and an extra
        from huggingface_hub import HfApi

        revision = HfApi().dataset_info(identifier).sha or "main"
        target = cache / "hub" / identifier.replace("/", "--") / revision / "train.jsonl.gz"
        if not target.exists():
            write_jsonl(target, datasets.load_dataset(identifier, split="train", streaming=True, revision=revision))
    return target


def _either(endings: tuple[str, ...]) -> str:
    return f"{', '.join(endings[:-1])} or {endings[-1]}"


def _files_below(folder: Path, task: str, endings: tuple[str, ...]) -> list[tuple[Path, str]]:
    """Data files below a folder, sorted by name. Links are followed, each folder is read once, hidden files are skipped."""
    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    others = 0
    for here, folders, files in os.walk(folder, followlinks=True):
        stat = Path(here).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        data = [name for name in files if name.endswith(endings) and not name.startswith(".")]
        others += len(files) - len(data)
        found += [Path(here) / name for name in data]
    missing = [path for path in found if not path.is_file()]
    if records := [path for path in missing if path.name.endswith(_NOT_PLAIN)]:
        raise DataError(*(f"{path}: task '{task}': is a broken link or not a file" for path in records))
    usable = sorted(set(found) - set(missing), key=lambda path: path.relative_to(folder).as_posix())
    broken = f"{len(missing)} broken links" if len(missing) > 1 else f"the broken link {missing[0]}" if missing else ""
    if not usable:
        raise DataError(
            f"{folder}: task '{task}': it holds no {_either(endings)} file ({' and '.join(filter(None, (broken, f'{others} other files')))})"
        )
    if missing:
        warn(
            f"{folder}: task '{task}': leaves out {broken}{f', the first is {min(missing)}' if len(missing) > 1 else ''}"
        )
    return [(path, path.relative_to(folder).as_posix()) for path in usable]


class _Identities:
    """Content hashes by path, stored with the stat of the file, so that an unchanged file is not read again."""

    def __init__(self, path: Path):
        self.path = path
        self.changed = False
        try:
            self.known: dict[str, list] = orjson.loads(path.read_bytes())
        except (OSError, ValueError):
            self.known = {}

    def describe(self, files: Sequence[tuple[Path, str]]) -> tuple[SourceFile, ...]:
        """Sizes and content hashes. A file is read again only if its stat has changed."""
        described = [self._describe(path, name) for path, name in files]
        records = [file for file in described if file.path.name.endswith(_NOT_PLAIN)]
        return (*records, *_bundle([file for file in described if not file.path.name.endswith(_NOT_PLAIN)]))

    def _describe(self, path: Path, name: str) -> SourceFile:
        if path.suffix != TOKENS_ENDING:
            return SourceFile(path, name, path.stat().st_size, self._digest(path))
        from mftcoder.data.records.megatron import TokenFile, tokens_path

        tokens = tokens_path(TokenFile.open(path).index)
        return SourceFile(path, name, tokens.stat().st_size, f"{self._digest(path)}:{self._digest(tokens)}")

    def _digest(self, path: Path) -> str:
        stat = path.stat()
        key = str(path.resolve())
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev]
        if self.known.get(key, [None])[0] == mark:
            return self.known[key][1]
        digest = _hash_file(path)
        # A file that was written less than two seconds ago could change again without a change of its stat.
        if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > 2_000_000_000:
            self.known[key] = [mark, digest]
            self.changed = True
        return digest

    def save(self) -> None:
        if self.changed:
            with atomic_path(self.path) as temporary:
                temporary.write_bytes(orjson.dumps(self.known))


def _bundle(plain: Sequence[SourceFile]) -> Iterator[SourceFile]:
    """All plain files of a task as one source, in their order."""
    if plain:
        digest = xxhash.xxh3_128("\n".join(f"{file.name}:{file.digest}" for file in plain).encode()).hexdigest()
        folder = Path(os.path.commonpath([file.path.absolute().parent for file in plain]))
        names = tuple(str(file.path) for file in plain)
        yield SourceFile(folder, "", sum(file.size for file in plain), digest, names)


def _hash_file(path: Path) -> str:
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


@dataclass(frozen=True)
class Block:
    """Whole lines of one file. `read` counts the bytes of the (compressed) file up to the end of the block."""

    first_line: int
    data: bytes
    read: int

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """`(number, line)` without line ends and blank lines."""
        for number, line in enumerate(self.data.split(b"\n"), start=self.first_line):
            content = line.strip(b" \t\r")
            if content:
                yield number, content


def _decompressed(raw: IO[bytes], path: Path) -> AbstractContextManager[IO[bytes]]:
    return gzip.open(raw) if path.name.endswith(".gz") else nullcontext(raw)  # type: ignore[return-value]


def read_blocks(file: SourceFile, block_bytes: int) -> Iterator[Block]:
    """The file's lines in blocks of about `block_bytes`, without a BOM. DataError if the file cannot be read."""
    if file.documents:
        yield from _blocks_of_lines(_lines_of_documents(file), block_bytes)
        return
    if file.has_tokens:
        from mftcoder.data.records.megatron import TokenFile

        yield from _blocks_of_lines(TokenFile.open(file.path).lines(), block_bytes)
        return
    try:
        with file.path.open("rb") as raw, _decompressed(raw, file.path) as stream:
            first_line = 1
            while data := stream.read(block_bytes):
                if not data.endswith(b"\n"):
                    data += stream.readline(MAX_LINE_BYTES)
                if len(data) >= MAX_LINE_BYTES:
                    raise DataError(f"{file.path}:{first_line}: a line is longer than {MAX_LINE_BYTES >> 20} MB")
                lines = data.count(b"\n")
                yield Block(first_line, data.removeprefix(b"\xef\xbb\xbf") if first_line == 1 else data, raw.tell())
                first_line += lines
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file.path}: cannot be read: {error}") from error


def lines_of(paths: Sequence[str], task: str, cache: Path) -> Iterator[tuple[str, bytes]]:
    """`(origin, line)` of each record in files and folders. The `task` is named in errors."""
    for file in find_sources([TaskConfig(name=task, files=tuple(paths))], cache)[0].training:
        for block in read_blocks(file, BLOCK_BYTES):
            yield from ((f"{file.path}:{number}", line) for number, line in block.lines())


def _blocks_of_lines(lines: Iterable[tuple[bytes, int]], block_bytes: int) -> Iterator[Block]:
    """Lines in blocks of about `block_bytes`; with each line come the bytes of the input up to its end."""
    waiting: list[bytes] = []
    first_line, size, read = 1, 0, 0
    for line, read in lines:
        waiting.append(line)
        size += len(line)
        if size >= block_bytes:
            yield Block(first_line, b"\n".join(waiting), read)
            first_line, size, waiting = first_line + len(waiting), 0, []
    if waiting:
        yield Block(first_line, b"\n".join(waiting), read)


def _lines_of_documents(file: SourceFile) -> Iterator[tuple[bytes, int]]:
    """Each plain file as a record `{"text": ...}`, and the bytes of all files up to its end."""
    read = 0
    for name in file.documents:
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise DataError(f"{name}: cannot be read: {error.strerror}") from error
        read += len(content)
        yield _as_record(content), read


def _as_record(content: bytes) -> bytes:
    """A line with this text. If the content is not UTF-8, the line is not JSON, and its error names the first such byte."""
    try:
        return orjson.dumps({"text": content.decode("utf-8-sig")})
    except UnicodeDecodeError:
        return content.translate(bytes.maketrans(b" \t\r\n", b"????"))
