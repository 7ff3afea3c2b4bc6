"""Every request with its answer and its tokens, a line each, keyed by content: what was answered once is never asked again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import xxhash

from mftcoder.curation.teacher.endpoint import AttemptError, Reply, Usage
from mftcoder.errors import EndpointError
from mftcoder.jsonl import JournalFile, has_settings, read_lines

FILE = "requests.journal"  # not .jsonl: its questions and answers are no training data
_SETTINGS = {"requests of": "mft data synthesize", "version": 1}
"""The same for all options, because a key holds everything that shapes an answer."""


def request_key(body: Mapping[str, Any], seed: int, sample: int) -> str:
    """128 bits over everything that shapes an answer: model, messages, parameters, the seed of the run, the number of the sample."""
    parts = [seed, sample, body]
    return xxhash.xxh3_128_hexdigest(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS))


@dataclass(frozen=True)
class Totals:
    """What the requests to one model used: attempts, their tokens, and attempts of which the endpoint did not say them."""

    attempts: int = 0
    answers: int = 0
    usage: Usage = Usage()
    unknown_usage: int = 0

    def plus(self, usage: Usage | None, *, answered: bool) -> "Totals":
        """With one attempt more."""
        unknown = self.unknown_usage + (answered and usage is None)
        return Totals(self.attempts + 1, self.answers + answered, self.usage + (usage or Usage()), unknown)


class RequestJournal:
    """The journal of an output; a context manager. EndpointError if the file is not one, or another process has it."""

    def __init__(self, path: Path):
        self.path = path
        self._file = JournalFile(path, _SETTINGS, EndpointError)
        records, self._file.records = self._file.records, []
        try:
            _refuse_loss(path, len(records))
            self._file.rewrite(records)  # without an incomplete last line
        except BaseException:
            self._file.close()
            raise
        self._broken: EndpointError | None = None
        self._replies: dict[str, Reply] = {}
        self.totals: dict[str, Totals] = {}  # by the model that was asked for
        self.models: dict[str, Counter[str]] = {}  # by the model that was asked for: the names that answered
        self.problems: Counter[str] = Counter()
        for record in records:
            self._take(record)

    def __enter__(self) -> "RequestJournal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._replies)

    def reply(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def add(
        self, key: str, body: Mapping[str, Any], reply: Reply | None, failed: Sequence[AttemptError], seconds: float
    ) -> None:
        """Append a request that is done: its answer, or None if all attempts failed. It is in the file when this returns."""
        attempts = [{"problem": attempt.problem, **_tokens(attempt.usage)} for attempt in failed]
        record: dict[str, Any] = {"key": key, "request": dict(body), "failed": attempts, "seconds": round(seconds, 3)}
        if reply is not None:
            record |= {"text": reply.text, "finish": reply.finish, "model": reply.model, **_tokens(reply.usage)}
        if self._broken is not None:
            raise self._broken
        try:
            self._file.append(record)
        except EndpointError as error:
            self._broken = error  # a line behind half a line would be lost with it
            raise
        self._take(record)

    def _take(self, record: Mapping[str, Any]) -> None:
        asked = record["request"]["model"]
        totals = self.totals.get(asked, Totals())
        for attempt in record["failed"]:
            totals = totals.plus(_usage(attempt), answered=False)
            self.problems[attempt["problem"]] += 1
        if "text" in record:
            reply = Reply(record["text"], record["finish"], record["model"], _usage(record))
            self._replies[record["key"]] = reply
            totals = totals.plus(reply.usage, answered=True)
            self.models.setdefault(asked, Counter())[reply.model] += 1
        self.totals[asked] = totals


def _refuse_loss(path: Path, complete: int) -> None:
    """A journal is rewritten when it is opened: refuse that where more than an incomplete last line would be lost."""
    lines = sum(1 for _ in read_lines(path))
    broken = 1 if lines and not has_settings(path, _SETTINGS) else complete + 2 if lines > complete + 2 else None
    if broken is not None:
        raise EndpointError(
            f"{path}:{broken}: is not a line of a request journal. Mend or move the file, or choose another --out"
        )


def _tokens(usage: Usage | None) -> dict[str, int]:
    return {} if usage is None else dict(vars(usage))


def _usage(record: Mapping[str, Any]) -> Usage | None:
    return Usage(record["prompt_tokens"], record["completion_tokens"]) if "prompt_tokens" in record else None
