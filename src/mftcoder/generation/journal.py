"""The journal of a generation: every completion as it comes, so that a killed run goes on where it was.

Comes out: `completions_{task}_{model}.jsonl`, a line of settings, then a line a sample with the raw text, the answer found in it
and why it ended. It counts only for the very same settings; a line cut short by a crash is dropped and made again. Of several
processes each but the first writes a file of its own beside it, `...rank1.jsonl`; the first takes them in at the end. Torch-free.
"""

import fcntl
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from mftcoder.errors import DataError, GenerationError
from mftcoder.generation.engine import Completion
from mftcoder.jsonl import read_jsonl, write_jsonl

Key = tuple[str, int]  # problem, sample


class GenerationJournal:
    """An append-only JSON Lines file. `answers` has what all processes had done when it was opened; a context manager."""

    def __init__(self, path: Path, settings: Mapping[str, Any], rank: int = 0):
        self.path = path.with_suffix(f".rank{rank}.jsonl") if rank else path
        self.settings = dict(settings)
        self._others = path.with_suffix("").name + ".rank*.jsonl"
        self._file = self._held()
        rows = _read(self.path, self.settings)
        self.answers = _answers(rows)
        for other in self._other_files():
            self.answers |= _answers(_read(other, self.settings))
        if rank:
            self.answers |= _answers(_read(path, self.settings))
        self._write(rows)  # also drops a line that a crash left half written

    def __enter__(self) -> "GenerationJournal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, completion: Completion, answer: str) -> None:
        """Append one sample; it is in the file when this returns."""
        line = json.dumps({**asdict(completion), "answer": answer}, ensure_ascii=False) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise GenerationError(
                f"{self.path}: {error.strerror}. What is done is kept; make room and type the same command again"
            ) from error
        self.answers[completion.problem_id, completion.sample] = answer

    def take_in_others(self) -> None:
        """Move what the other processes wrote into the first one's journal, once all of them are done."""
        rows = {(row["problem_id"], row["sample"]): row for row in _read(self.path, self.settings)}
        theirs = [other for other in self._other_files() if _is_of(other, self.settings)]
        for other in theirs:
            rows |= {(row["problem_id"], row["sample"]): row for row in _read(other, self.settings)}
        self._write(list(rows.values()))
        self.answers = _answers(list(rows.values()))
        for other in theirs:
            other.unlink()

    def _write(self, rows: list[dict[str, Any]]) -> None:
        write_jsonl(self.path, [{"settings": self.settings}, *rows])
        self._file.close()
        self._file = self._held()

    def _held(self) -> BinaryIO:
        """The file, open for appending and for this process alone: what is written beside a rewrite would be lost."""
        try:
            file = self.path.open("ab")
        except OSError as error:
            raise GenerationError(f"{self.path}: cannot be written: {error.strerror}. Choose another --out") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise GenerationError(
                f"{self.path}: another process is generating into it. Wait for it, or choose another --out"
            ) from error
        return file

    def _other_files(self) -> list[Path]:
        return [path for path in sorted(self.path.parent.glob(self._others)) if path != self.path]


def _answers(rows: list[dict[str, Any]]) -> dict[Key, str]:
    return {(row["problem_id"], row["sample"]): row["answer"] for row in rows}


def _is_of(path: Path, settings: dict[str, Any]) -> bool:
    """Whether a file is a journal made with these settings, and not that of a model whose name ends like a rank's."""
    return _lines(path)[:1] == [{"settings": settings}]


def _read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    rows = _lines(path)
    return rows[1:] if rows[:1] == [{"settings": settings}] else []


def _lines(path: Path) -> list[Any]:
    rows: list[Any] = []
    try:
        rows.extend(row for _, row in read_jsonl(path))
    except (DataError, FileNotFoundError):
        pass  # a line cut short by a crash: the rows before it stand
    return rows
