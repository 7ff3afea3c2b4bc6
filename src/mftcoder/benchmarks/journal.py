"""The journal of an evaluation: each result as it comes, so that a stopped evaluation goes on from it.

A result counts only for the same program (the answer and its tests) under the same settings, and only if this user's `mft` wrote
it: each line has a digest made with a key in the user's cache folder. `sandbox_error` is never written, so it is tried again.
"""

import contextlib
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mftcoder.cache import cache_root
from mftcoder.errors import ExecutionError
from mftcoder.execution.sandbox import ExecutionResult
from mftcoder.jsonl import JournalFile

KEY_FILE = "journal.key"
_KEY_BYTES = 32

Known = dict[tuple[str, str], ExecutionResult]  # (key, fingerprint) -> result


class Journal:
    """The journal file of an evaluation; a context manager.

    `known` are the results that count, `refused` is the number of lines with a wrong digest: edited, or from another machine.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], secret: bytes | None = None):
        self.path = path
        self.known: Known = {}
        self.refused = 0
        self._secret = secret or own_secret()
        self._file = JournalFile(path, settings, ExecutionError)
        for record in self._file.records:
            self._take(record)
        records = [self._record(key, program, result) for (key, program), result in self.known.items()]
        self._file.rewrite(records)  # without an incomplete last line and refused ones

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, key: str, program: str, result: ExecutionResult) -> None:
        """Append one result; it is in the file when this returns."""
        if result.status != "sandbox_error":
            self._file.append(self._record(key, program, result))

    def _record(self, key: str, program: str, result: ExecutionResult) -> dict[str, Any]:
        record = {"key": key, "program": program, "result": result.as_record()}
        return {**record, "digest": self._digest(record)}

    def _digest(self, record: Mapping[str, Any]) -> str:
        content = [self._file.settings, record["key"], record["program"], record["result"]]
        return hmac.new(self._secret, json.dumps(content, sort_keys=True).encode(), hashlib.sha256).hexdigest()

    def _take(self, record: Any) -> None:
        """Add a record to the known results if its digest is right."""
        try:
            genuine = hmac.compare_digest(str(record["digest"]), self._digest(record))
            result = ExecutionResult.from_record(record["result"])
        except (KeyError, TypeError, AttributeError):
            genuine = False
        if genuine:
            self.known[record["key"], record["program"]] = result
        else:
            self.refused += 1


def own_secret(path: Path | None = None) -> bytes:
    """This user's key, made on first use. If it cannot be kept, a key for this run only, so no other run accepts its journal."""
    try:
        path = path or cache_root() / KEY_FILE
        if not path.exists():
            _make_secret(path)
        found = path.read_bytes()
    except (OSError, RuntimeError):  # a full disk, a read-only cache, no home folder
        found = b""
    return found if len(found) == _KEY_BYTES else secrets.token_bytes(_KEY_BYTES)


def _make_secret(path: Path) -> None:
    """Write a key that only this user can read; keep one that another process made meanwhile."""
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
