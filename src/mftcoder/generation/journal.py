"""The journal of a generation: every completion as it comes, so that a killed run goes on where it was.

Comes out: `completions_{task}_{model}.jsonl`, a line of settings, then a line a sample with the raw text, the answer found in it
and why it ended. It counts only for the very same settings; a line cut short by a crash is dropped and made again. Torch-free.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from mftcoder.errors import DataError, GenerationError
from mftcoder.generation.engine import Completion
from mftcoder.jsonl import read_jsonl, write_jsonl

Key = tuple[str, int]  # problem, sample


class GenerationJournal:
    """An append-only JSON Lines file. `answers` has what is done; a context manager."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path = path
        rows = _read(path, dict(settings))
        self.answers: dict[Key, str] = {(row["problem_id"], row["sample"]): row["answer"] for row in rows}
        write_jsonl(path, [{"settings": settings}, *rows])  # also drops a line that a crash left half written
        self._file = path.open("ab")

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


def _read(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows: list[Any] = []
    try:
        rows.extend(row for _, row in read_jsonl(path))
    except DataError:
        pass  # a line cut short by a crash: the rows before it stand
    return rows[1:] if rows and rows[0] == {"settings": settings} else []
