"""The journal of an evaluation: every result as it comes, so that a killed run goes on where it was.

Goes in: results with their programs' fingerprints. Comes out: what an earlier run already knows. A result counts only for the
very same program (the answer and its tests) under the very same settings, and only if this user's `mft` has written it: each line
carries a digest made with a key that lies in the user's cache folder. `sandbox_error` is never remembered, so it is tried again.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mftcoder.cache import cache_root
from mftcoder.errors import DataError, ExecutionError
from mftcoder.execution.sandbox import ExecutionResult
from mftcoder.jsonl import read_jsonl, write_jsonl

KEY_FILE = "journal.key"
_KEY_BYTES = 32

Known = dict[tuple[str, str], ExecutionResult]  # (key, fingerprint) -> result


class Journal:
    """An append-only JSON Lines file: a line of settings, then a line a result. A context manager.

    `known` holds the results that count, `refused` the number of lines whose digest is wrong: edited, or from another machine.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], secret: bytes | None = None):
        self.path, self.settings = path, dict(settings)
        self.known: Known = {}
        self.refused = 0
        self._secret = secret or own_secret()
        self._read()
        rows = [self._row(key, program, result) for (key, program), result in self.known.items()]
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
        line = json.dumps(self._row(key, program, result)) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except OSError as error:
            raise ExecutionError(
                f"{self.path}: {error.strerror}. What is done is kept; make room and run again."
            ) from error

    def _row(self, key: str, program: str, result: ExecutionResult) -> dict[str, Any]:
        row = {"key": key, "program": program, "result": result.as_record()}
        return {**row, "digest": self._digest(row)}

    def _digest(self, row: Mapping[str, Any]) -> str:
        content = json.dumps([self.settings, row["key"], row["program"], row["result"]], sort_keys=True)
        return hmac.new(self._secret, content.encode(), hashlib.sha256).hexdigest()

    def _read(self) -> None:
        if not self.path.is_file():
            return
        rows: list[Any] = []
        with contextlib.suppress(DataError):  # a line cut short by a crash: the rows before it stand
            rows.extend(row for _, row in read_jsonl(self.path))
        if not rows or not isinstance(rows[0], dict) or rows[0].get("settings") != self.settings:
            return
        for row in rows[1:]:
            try:
                genuine = hmac.compare_digest(str(row["digest"]), self._digest(row))
                result = ExecutionResult.from_record(row["result"])
            except (KeyError, TypeError, AttributeError):
                genuine = False
            if genuine:
                self.known[row["key"], row["program"]] = result
            else:
                self.refused += 1


def own_secret(path: Path | None = None) -> bytes:
    """This user's key, made when it is first needed. Where it cannot be kept, one for this run: its journal then counts for no other."""
    try:
        path = path or cache_root() / KEY_FILE
        if not path.exists():
            _make_secret(path)
        found = path.read_bytes()
    except (OSError, RuntimeError):  # no room, a cache for reading only, no home folder
        found = b""
    return found if len(found) == _KEY_BYTES else secrets.token_bytes(_KEY_BYTES)


def _make_secret(path: Path) -> None:
    """Write a key, readable for this user only; one that another process has made meanwhile stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123
            file.write(secrets.token_bytes(_KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
    finally:
        temporary.unlink()
