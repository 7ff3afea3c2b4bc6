"""A block of raw lines -> a block file of tokenized samples and a BlockReport. This is what the worker processes run.

A block file gets its name only when it is complete, so that a killed run can continue with the finished blocks.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mftcoder.config.data import DataConfig
from mftcoder.config.kinds import TaskKind
from mftcoder.data.records.files import Block, SourceFile
from mftcoder.data.rendering.kinds import Example, Records, records_of
from mftcoder.data.rendering.tokenization import Fitted, Tokens
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
    trained: NDArray[np.int32]  # [N] trained targets; of a pair those of its first text
    hashes: NDArray[np.uint64]  # [N] of the record's content
    lines: NDArray[np.int64]  # [N]
    starts_record: NDArray[np.bool_]  # [N] false for the second and later pieces of a split sample
    cut: NDArray[np.uint8]  # [N] WHOLE, TRUNCATED or SPLIT
    second: NDArray[np.int32]  # [N] the token at which the second text of a pair begins; 0 for a single text
    desirable: NDArray[np.bool_]  # [N] the label of a labelled answer
    reward: NDArray[np.float64]  # [N] of a sampled answer
    mean: NDArray[np.float64]  # [N] of the rewards of its group
    deviation: NDArray[np.float64]  # [N] their standard deviation

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.savez(file, **self.__dict__)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "BlockRows":
        with np.load(path) as arrays:
            return cls(**arrays)


@dataclass
class BlockReport:
    """Counts for a block's lines. `errors` are the first problems of the skipped records as `path:line: what`; `problems` counts all."""

    records: int = 0
    tokens: int = 0
    dropped: int = 0
    untrained: int = 0
    fim: int = 0
    skipped: int = 0
    problems: int = 0
    errors: list[str] = field(default_factory=list)

    def note(self, origin: str, problems: Sequence[str]) -> None:
        """Count a record that cannot be used and its problems, and list these up to MAX_LISTED."""
        self.skipped += 1
        self.problems += len(problems)
        left = max(0, MAX_LISTED - len(self.errors))
        self.errors += [f"{origin}: {problem}" for problem in problems[:left]]


@dataclass(frozen=True)
class BlockJob:
    """One block and what a worker needs to tokenize it. Without `rows_path` its records are only checked."""

    block: Block
    source: SourceFile
    task: str
    kind: TaskKind
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
    content: Any


class BlockMaker:
    """Tokenizer, templates and limits, loaded once per process."""

    def __init__(self, tokenizer_name: str, config: DataConfig):
        # The processes are the parallelism: one thread in each, which also avoids a warning in forks of this process.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.tokenizer = load_tokenizer(tokenizer_name)
        self.config = config
        self._records: dict[TaskKind, Records] = {}

    def _records_of(self, kind: TaskKind) -> Records:
        if kind not in self._records:
            self._records[kind] = records_of(kind, self.tokenizer, self.config)
        return self._records[kind]

    def run(self, job: BlockJob) -> BlockReport:
        """Make one block file, or reuse one that an earlier run finished."""
        earlier = _read_report(job)
        if earlier is not None:
            return earlier
        report, records = BlockReport(), self._records_of(job.kind)
        rendered = (_render(batch, job, report, records) for batch in _batches(job, report, records))
        if job.rows_path is None or job.report_path is None:
            for _ in rendered:
                pass  # rendering finds the problems
        else:
            join([_tokenize(batch, job, report, records) for batch in rendered]).save(job.rows_path)
            temporary = job.report_path.with_suffix(f".{os.getpid()}.tmp")
            temporary.write_bytes(orjson.dumps(asdict(report)))
            temporary.replace(job.report_path)
        return report


def _batches(job: BlockJob, report: BlockReport, records: Records) -> Iterator[list[tuple[int, Example]]]:
    """The valid examples with their line numbers, about a million characters at a time to bound the memory."""
    batch: list[tuple[int, Example]] = []
    size = 0
    for number, example in _examples(job, report, records):
        batch.append((number, example))
        size += example.size
        if size > _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _render(
    batch: Sequence[tuple[int, Example]], job: BlockJob, report: BlockReport, records: Records
) -> list[_Rendered]:
    rendered = []
    for line, example in batch:
        try:
            content = records.render(example)
        except DataError as error:
            report.records -= 1
            report.note(job.source.origin(line), error.problems)
            continue
        rendered.append(_Rendered(line, example.content_hash, content))
    return rendered


def _tokenize(batch: Sequence[_Rendered], job: BlockJob, report: BlockReport, records: Records) -> BlockRows:
    fitted = records.fit([one.content for one in batch])
    for one, record in zip(fitted, batch, strict=True):
        if one.problem:
            report.records -= 1
            report.note(job.source.origin(record.line), [one.problem])
    report.dropped += sum(one.dropped for one in fitted)
    report.untrained += sum(one.untrained for one in fitted)
    report.fim += sum(one.fim for one in fitted)
    report.tokens += sum(len(piece.ids) for one in fitted for piece in one.pieces)
    return _rows(fitted, batch)


def _read_report(job: BlockJob) -> BlockReport | None:
    if job.report_path is None or not job.report_path.exists():
        return None
    try:
        return BlockReport(**orjson.loads(job.report_path.read_bytes()))
    except (ValueError, TypeError):
        return None


def _examples(job: BlockJob, report: BlockReport, records: Records) -> Iterator[tuple[int, Example]]:
    for number, line in job.block.lines():
        origin = job.source.origin(number)
        try:
            example = records.read(line, format=job.format, task=job.task, origin=origin)
        except DataError as error:
            report.note(origin, _problems(error, job, line))
            continue
        report.records += 1
        yield number, example


def _problems(error: DataError, job: BlockJob, line: bytes) -> list[str]:
    if job.source.documents:  # not JSON: only its encoding can be wrong
        return [problem.removeprefix("not valid JSON: ") for problem in error.problems]
    cut_off = " (the file ends within this line)" if _is_cut_off(job, line) else ""
    return [f"{problem}{cut_off}" for problem in error.problems]


def _is_cut_off(job: BlockJob, line: bytes) -> bool:
    data = job.block.data
    return not (data.endswith(b"\n") or line.endswith(b"}")) and data.endswith(line)


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
        trained=np.array([piece.trained[1 : piece.second or None].sum() for piece in pieces], np.int32),
        hashes=np.array(hashes, np.uint64),
        lines=np.array(lines, np.int64),
        starts_record=np.array(starts, bool),
        cut=np.array(cuts, np.uint8),
        second=np.array([piece.second for piece in pieces], np.int32),
        desirable=np.array([piece.desirable for piece in pieces], bool),
        reward=np.array([piece.graded.reward for piece in pieces]),
        mean=np.array([piece.graded.mean for piece in pieces]),
        deviation=np.array([piece.graded.deviation for piece in pieces]),
    )


_TYPES = {
    "tokens": np.int32,
    "sizes": np.int32,
    "trained": np.int32,
    "hashes": np.uint64,
    "lines": np.int64,
    "starts_record": np.bool_,
    "cut": np.uint8,
    "second": np.int32,
    "desirable": np.bool_,
    "reward": np.float64,
    "mean": np.float64,
    "deviation": np.float64,
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
