"""The journal of an evaluation: every result as it comes, so that a killed run goes on where it was.

Goes in: results with their programs' fingerprints. Comes out: what an earlier run already knows. A result counts only for the
very same program under the very same settings; `sandbox_error` is never remembered, so it is tried again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mftcoder.errors import DataError, ExecutionError
from mftcoder.execution.sandbox import ExecutionResult
from mftcoder.jsonl import read_jsonl, write_jsonl

Known = dict[tuple[str, str], ExecutionResult]  # (key, fingerprint) -> result


class Journal:
    """An append-only JSON Lines file: a line of settings, then a line a result. A context manager."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.path, self.settings = path, dict(settings)
        self.known = self._read()
        rows = [
            {"key": key, "program": program, "result": result.as_record()}
            for (key, program), result in self.known.items()
        ]
        write_jsonl(path, [{"settings": self.settings}, *rows])  # also drops a line that a crash left half written
        self._file = path.open("ab")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, key: str, program: str, result: ExecutionResult) -> None:
        """Append one result; it is in the file when this returns."""
        if result.status == "sandbox_error":
            return
        line = json.dumps({"key": key, "program": program, "result": result.as_record()}) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise ExecutionError(
                f"{self.path}: {error.strerror}. What is done is kept; make room and run again."
            ) from error

    def _read(self) -> Known:
        if not self.path.is_file():
            return {}
        rows: list[Any] = []
        try:
            rows.extend(row for _, row in read_jsonl(self.path))
        except DataError:
            pass  # a line cut short by a crash: the rows before it stand
        if not rows or rows[0].get("settings") != self.settings:
            return {}
        return {(row["key"], row["program"]): ExecutionResult.from_record(row["result"]) for row in rows[1:]}
