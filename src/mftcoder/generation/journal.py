"""The journal of a generation: each completion is written when it is ready, so that a killed run can continue. Torch-free.

`completions_{task}_{model}.jsonl` has a line of settings, then one line per sample with the raw text, the answer in it, and why it
ended. It is used only for the same settings; a line truncated by a crash is generated again. With several processes, each except the
first writes its own file, `...rank1.jsonl`, and the first merges them at the end.
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
    """An append-only JSON Lines file. `answers` starts with those of all processes at the time of opening."""

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
        self._write(rows)  # also removes a line that a crash truncated

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
                f"{self.path}: {error.strerror}. Finished answers are kept; free some space and type the same command again"
            ) from error
        self.answers[completion.problem_id, completion.sample] = answer

    def merge_others(self) -> None:
        """Move the lines of the other processes into the first one's journal, after all of them are done."""
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
        """The file, opened for appending and locked: the lines of a second writer would be lost at a rewrite."""
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
    """Whether a file is a journal with these settings. A model's name could end like that of a rank's file."""
    return _lines(path)[:1] == [{"settings": settings}]


def _read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    rows = _lines(path)
    return rows[1:] if rows[:1] == [{"settings": settings}] else []


def _lines(path: Path) -> list[Any]:
    rows: list[Any] = []
    try:
        rows.extend(row for _, row in read_jsonl(path))
    except (DataError, FileNotFoundError):
        pass  # a line truncated by a crash: the lines before it are valid
    return rows
