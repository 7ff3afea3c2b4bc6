"""A block of raw lines -> a block file of tokenized samples and a BlockReport. This is what the worker processes run.

A block file gets its name only when it is complete, so that a killed run can continue with the finished blocks.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from mftcoder.config.data import DataConfig
from mftcoder.data.records.conversation import Conversation
from mftcoder.data.records.files import Block
from mftcoder.data.records.formats import read_record
from mftcoder.data.rendering.segment import Segment
from mftcoder.data.rendering.templates import load_template, render
from mftcoder.data.rendering.tokenization import Fitted, Tokens, encode_segments, fit
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import DataError
from mftcoder.processes import start_as_worker

MAX_LISTED = 10_000
WHOLE, TRUNCATED, SPLIT = 0, 1, 2
_BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class BlockRows:
    """N samples in the order of their lines. A trained token is stored as ~id, so ids and flags share one array."""

    tokens: NDArray[np.int32]  # the tokens of all samples, concatenated: T + 1 of each
    sizes: NDArray[np.int32]  # [N] T + 1
    trained: NDArray[np.int32]  # [N] trained targets
    hashes: NDArray[np.uint64]  # [N] of the conversation's content
    lines: NDArray[np.int64]  # [N]
    starts_record: NDArray[np.bool_]  # [N] false for the second and later pieces of a split sample
    cut: NDArray[np.uint8]  # [N] WHOLE, TRUNCATED or SPLIT

    def save(self, path: Path) -> None:
        """Write all arrays into one file, atomically."""
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, **self.__dict__)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "BlockRows":
        """The samples of a block file."""
        with np.load(path) as arrays:
            return cls(**arrays)


@dataclass
class BlockReport:
    """Counts for a block's lines. `errors` are the first problems as `path:line: what`, `problems` counts all of them."""

    records: int = 0
    tokens: int = 0
    dropped: int = 0
    untrained: int = 0
    problems: int = 0
    errors: list[str] = field(default_factory=list)

    def note(self, origin: str, problems: Sequence[str]) -> None:
        """Count problems, and list them up to MAX_LISTED."""
        self.problems += len(problems)
        left = max(0, MAX_LISTED - len(self.errors))
        self.errors += [f"{origin}: {problem}" for problem in problems[:left]]


@dataclass(frozen=True)
class BlockJob:
    """One block and what a worker needs to tokenize it. Without `rows_path` its records are only checked."""

    block: Block
    path: str
    task: str
    format: str
    rows_path: Path | None

    @property
    def report_path(self) -> Path | None:
        """Path of the report. It is written after the samples, so it proves that they are complete."""
        return self.rows_path.with_suffix(".json") if self.rows_path else None


@dataclass(frozen=True, slots=True)
class _Rendered:
    line: int
    content_hash: int
    segments: list[Segment]


class BlockMaker:
    """Tokenizer, template and limits, loaded once per process."""

    def __init__(self, tokenizer_name: str, config: DataConfig):
        # The processes are the parallelism: one thread in each, which also avoids a warning in forks of this process.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.tokenizer = load_tokenizer(tokenizer_name)
        self.template = load_template(config, self.tokenizer)
        self.config = config

    def run(self, job: BlockJob) -> BlockReport:
        """Make one block file, or reuse one that an earlier run finished."""
        earlier = _read_report(job)
        if earlier is not None:
            return earlier
        report = BlockReport()
        rendered = (self._render(batch, report) for batch in self._batches(job, report))
        if job.rows_path is None or job.report_path is None:
            for _ in rendered:
                pass  # rendering finds the problems
        else:
            join([self._tokenize(batch, report) for batch in rendered]).save(job.rows_path)
            temporary = job.report_path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_bytes(orjson.dumps(asdict(report)))
            temporary.replace(job.report_path)
        return report

    def _batches(self, job: BlockJob, report: BlockReport) -> Iterator[list[tuple[int, Conversation]]]:
        """The valid conversations with their line numbers, about a million characters at a time to bound the memory."""
        batch: list[tuple[int, Conversation]] = []
        size = 0
        for number, conversation in _conversations(job, report):
            batch.append((number, conversation))
            size += sum(len(message.content) for message in conversation.messages)
            if size > _BATCH_CHARACTERS:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _render(self, batch: Sequence[tuple[int, Conversation]], report: BlockReport) -> list[_Rendered]:
        rendered = []
        for line, conversation in batch:
            try:
                segments = render(conversation, self.template, self.tokenizer, self.config.train_on)
            except DataError as error:
                report.records -= 1
                report.note(conversation.origin, error.problems)
                continue
            rendered.append(_Rendered(line, conversation.content_hash, segments))
        return rendered

    def _tokenize(self, batch: Sequence[_Rendered], report: BlockReport) -> BlockRows:
        tokens = encode_segments(self.tokenizer, [one.segments for one in batch])
        fitted = [fit(one, self.config.max_length, self.config.over_length) for one in tokens]
        report.dropped += sum(one.dropped for one in fitted)
        report.untrained += sum(one.untrained for one in fitted)
        report.tokens += sum(len(one.ids) for one in tokens)
        return _rows(fitted, batch)


def _read_report(job: BlockJob) -> BlockReport | None:
    if job.report_path is None or not job.report_path.exists():
        return None
    try:
        return BlockReport(**orjson.loads(job.report_path.read_bytes()))
    except (ValueError, TypeError):
        return None


def _conversations(job: BlockJob, report: BlockReport) -> Iterator[tuple[int, Conversation]]:
    for number, line in job.block.lines():
        origin = f"{job.path}:{number}"
        try:
            conversation = read_record(line, format=job.format, task=job.task, origin=origin)
        except DataError as error:
            cut_off = " (the file ends within this line)" if _is_cut_off(job.block, line) else ""
            report.note(origin, [f"{problem}{cut_off}" for problem in error.problems])
            continue
        report.records += 1
        yield number, conversation


def _is_cut_off(block: Block, line: bytes) -> bool:
    return not block.data.endswith(b"\n") and block.data.endswith(line) and not line.endswith(b"}")


def _rows(fitted: Sequence[Fitted], batch: Sequence[_Rendered]) -> BlockRows:
    pieces: list[Tokens] = []
    facts: list[tuple[int, int, bool, int]] = []
    for one, record in zip(fitted, batch, strict=True):
        cut = TRUNCATED if one.truncated else SPLIT if one.split else WHOLE
        pieces += one.pieces
        facts += [(record.line, record.content_hash, index == 0, cut) for index in range(len(one.pieces))]
    if not pieces:
        return join([])
    lines, hashes, starts, cuts = zip(*facts, strict=True)
    flagged = [np.where(piece.trained, ~piece.ids, piece.ids) for piece in pieces]
    return BlockRows(
        tokens=np.concatenate(flagged).astype(np.int32),
        sizes=np.array([len(piece.ids) for piece in pieces], np.int32),
        trained=np.array([piece.trained[1:].sum() for piece in pieces], np.int32),
        hashes=np.array(hashes, np.uint64),
        lines=np.array(lines, np.int64),
        starts_record=np.array(starts, bool),
        cut=np.array(cuts, np.uint8),
    )


_TYPES = {
    "tokens": np.int32,
    "sizes": np.int32,
    "trained": np.int32,
    "hashes": np.uint64,
    "lines": np.int64,
    "starts_record": np.bool_,
    "cut": np.uint8,
}


def join(parts: Sequence[BlockRows]) -> BlockRows:
    """The samples of all parts, concatenated."""
    empty: dict[str, NDArray] = {name: np.empty(0, kind) for name, kind in _TYPES.items()}
    return BlockRows(
        **{name: np.concatenate([empty[name], *(getattr(part, name) for part in parts)]) for name in _TYPES}
    )


_maker: BlockMaker | None = None


def start_worker(tokenizer_name: str, config: DataConfig) -> None:
    """Make this process a worker: it ignores Ctrl-C, which its parent handles, and ends with its parent."""
    global _maker
    start_as_worker()
    _maker = BlockMaker(tokenizer_name, config)


def run_job(job: BlockJob) -> BlockReport:
    """`BlockMaker.run` in a worker process."""
    assert _maker is not None, "start_worker runs first"
    return _maker.run(job)
