"""One block of records through the steps between two barriers. This is what the worker processes run.

A block is lines of a data file, or what an earlier stage left of them. It becomes three files: kept lines, dropped records, a report.
The report is written last, with the checksums of the others: to wait until they are on the disk would take longer than to make them.
"""

import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import orjson
import xxhash

from mftcoder.config.problems import one_line
from mftcoder.curation.duplicates.config import DedupConfig
from mftcoder.curation.example import Drop, Example
from mftcoder.curation.statistics import Statistics
from mftcoder.data.records.files import Block
from mftcoder.data.records.formats import read_record
from mftcoder.errors import DataError
from mftcoder.jsonl import atomic_path

READ = "read"
"""The name under which lines that cannot be read are dropped."""
SAMPLES = 10
KEPT = "kept"
_ENDINGS = (".kept", ".dropped", ".sketch", ".ngrams")
_SHOWN_CHARACTERS = 1200
_SHOWN_OF_A_BAD_LINE = 300
_RECORDS_AT_ONCE = 64


@dataclass(frozen=True)
class Kept:
    """A barrier keeps a record: how it is counted, and fields that are written into it."""

    counted: str
    fields: Mapping[str, Any] = field(default_factory=dict)


class RecordStep(Protocol):
    """A step that looks at records one by one."""

    takes_whole_blocks: bool
    """Whether it is given the records of a block together, because its tool is slow to start; else some at a time."""

    def check_all(self, examples: Sequence[Example]) -> Sequence[Drop | None]:
        """For each record, why it is dropped; None if it is kept."""


@dataclass(frozen=True)
class Place:
    """Which file of which task a block comes from."""

    task: str
    split: str  # train or validation
    path: str
    format: str


@dataclass(frozen=True)
class BlockJob:
    """One block, the steps that it goes through, and what a barrier before them has decided on its records."""

    place: Place
    source: Block | Path  # lines of a file, or the kept lines of an earlier stage
    steps: tuple[str, ...]  # names of record steps
    target: Path  # without an ending
    seed: int
    decided: tuple[str, Mapping[int, Drop | Kept]] = ("", {})  # the barrier's name, and its decisions by line number
    sketch: DedupConfig | None = None  # of the next barrier: it gets the sketches of what is kept
    is_last: bool = True  # what is kept now is the result: statistics are made of it

    @property
    def report_path(self) -> Path:
        """Written last."""
        return self.target.with_suffix(".json")

    def run(self, steps: Mapping[str, RecordStep]) -> "BlockReport":
        """Make the block's files, or take those that an earlier run has finished."""
        earlier = read_report(self.report_path)
        if earlier is not None and earlier.checksums == self._checksums():
            return earlier
        worker = _BlockWork(self, [(name, steps[name]) for name in self.steps])
        with (
            atomic_path(kept_path(self.target), lasting=False) as kept,
            atomic_path(dropped_path(self.target), lasting=False) as dropped,
            kept.open("wb") as kept_file,
            dropped.open("wb") as dropped_file,
        ):
            examples = []
            lines = self.source.lines() if isinstance(self.source, Block) else numbered_lines(self.source)
            for record in worker.take(lines):
                entry = worker.count(record)
                if entry is None:
                    if self.sketch is not None:
                        examples.append((record.number, worker.example(record)))
                    if not self.is_last:
                        kept_file.write(b"%d\t" % record.number)
                    kept_file.write(worker.labelled(record) + b"\n")
                else:
                    dropped_file.write(orjson.dumps(entry) + b"\n")
        if self.sketch is not None:
            from mftcoder.curation.duplicates.sketches import sketch  # numpy, which no filter needs

            sketch(examples, self.sketch).save(self.target)
        worker.report.after = worker.report.before.without(worker.lost)
        worker.report.checksums = self._checksums()
        with atomic_path(self.report_path, lasting=False) as temporary:
            temporary.write_bytes(orjson.dumps(worker.report.as_json()))
        return worker.report

    def _checksums(self) -> dict[str, str]:
        """Of the block's files but for the report; those that are missing have none."""
        paths = (self.target.with_suffix(ending) for ending in _ENDINGS)
        return {path.suffix: xxhash.xxh3_64_hexdigest(path.read_bytes()) for path in paths if path.exists()}


def kept_path(target: Path) -> Path:
    """The kept lines of a block: in the last stage as they will stand in the result, before it each behind its line number and a tab."""
    return target.with_suffix(".kept")


def dropped_path(target: Path) -> Path:
    """The dropped records of a block, as they will stand in dropped.jsonl."""
    return target.with_suffix(".dropped")


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """`(line number, record)` of the kept lines of a stage before the last one."""
    with path.open("rb") as file:
        for numbered in file:
            number, _, line = numbered.rstrip(b"\n").partition(b"\t")
            yield int(number), line


@dataclass
class BlockReport:
    """What became of a block: counts a step and rule, samples, statistics of what came in and of what is kept."""

    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    before: Statistics = field(default_factory=Statistics)
    after: Statistics = field(default_factory=Statistics)
    grams: Counter[tuple[str, str]] = field(
        default_factory=Counter
    )  # by step: n-grams shared with an exam, and records
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)  # by step: what running the records has shown
    samples: dict[str, list[tuple[int, dict[str, Any]]]] = field(default_factory=dict)  # by rank, the smallest ones
    checksums: dict[str, str] = field(default_factory=dict)  # of the block's files, by ending

    def sample(self, key: str, rank: int, shown: dict[str, Any]) -> None:
        """Keep the sample if it is among the first by rank."""
        self.samples[key] = heapq.nsmallest(SAMPLES, [*self.samples.get(key, []), (rank, shown)], key=_by_rank)

    def wants(self, key: str, rank: int) -> bool:
        """Whether a sample of this rank would be kept."""
        held = self.samples.get(key, [])
        return len(held) < SAMPLES or rank < held[-1][0]

    def merge(self, other: "BlockReport") -> None:
        """Take in another block of the same stage."""
        self.before.merge(other.before)
        self.after.merge(other.after)
        for name in COUNTERS:
            getattr(self, name).update(getattr(other, name))
        for key, samples in other.samples.items():
            self.samples[key] = heapq.nsmallest(SAMPLES, [*self.samples.get(key, []), *samples], key=_by_rank)

    def as_json(self) -> dict[str, Any]:
        """Plain values that `read_report` takes back."""
        return {
            **{name: [[*key, count] for key, count in getattr(self, name).items()] for name in COUNTERS},
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "samples": self.samples,
            "checksums": self.checksums,
        }


COUNTERS = ("dropped", "grams", "verdicts")
"""The fields that count pairs of a step and what it has found."""


def _by_rank(sample: Sequence[Any]) -> tuple[int, str]:
    return sample[0], sample[1]["origin"]


def read_report(path: Path) -> BlockReport | None:
    """The report of a finished block; None if there is none, or a broken one."""
    try:
        found = orjson.loads(path.read_bytes())
        return BlockReport(
            before=Statistics.from_json(found["before"]),
            after=Statistics.from_json(found["after"]),
            samples={key: [(rank, shown) for rank, shown in samples] for key, samples in found["samples"].items()},
            checksums=found["checksums"],
            **{name: Counter({(step, what): count for step, what, count in found[name]}) for name in COUNTERS},
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _report_of(kept: Path) -> BlockReport:
    """The report of a block by its kept lines. It is there: a later stage begins when the earlier one is complete."""
    report = read_report(kept.with_suffix(".json"))
    assert report is not None, f"{kept}: has no report"
    return report


@dataclass(slots=True)
class _Record:
    """A line of the block. `example` is None for one that cannot be read, or that nothing has looked at yet; `dropped` is the step and its reason."""

    number: int
    line: bytes
    origin: str
    rank: int
    example: Example | None = None
    dropped: tuple[str, Drop] | None = None


class _BlockWork:
    """The records of one block: each step takes those that the steps before it have left."""

    def __init__(self, job: BlockJob, steps: Sequence[tuple[str, RecordStep]]):
        self.job, self.steps = job, steps
        self.barrier, self.decided = job.decided
        self.report = BlockReport()
        self.lost = Statistics()
        if isinstance(job.source, Path):
            self.report.before = _report_of(job.source).after

    def take(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[_Record]:
        """The records, with what became of them: some at a time, so that they stay in the processor's cache."""
        count = None if any(step.takes_whole_blocks for _, step in self.steps) else _RECORDS_AT_ONCE
        while group := [self._read(number, line) for number, line in islice(lines, count)]:
            yield from self._judged(group)

    def _judged(self, records: list[_Record]) -> list[_Record]:
        for record in records if not isinstance(self.job.source, Path) else ():
            try:  # what an earlier stage has kept can be read: it is parsed when it is asked for
                self.report.before.add(self.example(record))
            except DataError as error:
                text = record.line[:_SHOWN_OF_A_BAD_LINE].decode(errors="replace")
                record.dropped = READ, Drop("unusable", one_line("; ".join(error.problems)), {"begins": text})
        for name, step in self.steps:
            left = [record for record in records if not record.dropped]
            drops = step.check_all([self.example(record) for record in left])
            for record, drop in zip(left, drops, strict=True):
                record.dropped = (name, drop) if drop else None
        return records

    def _read(self, number: int, line: bytes) -> _Record:
        origin = f"{self.job.place.path}:{number}"
        record = _Record(number, line, origin, xxhash.xxh3_64_intdigest(origin.encode(), seed=self.job.seed) >> 1)
        decided = self.decided.get(number)
        if isinstance(decided, Drop):
            record.dropped = self.barrier, decided
        return record

    def example(self, record: _Record) -> Example:
        """The record, parsed once. DataError if it cannot be read."""
        if record.example is None:
            place = self.job.place
            conversation = read_record(record.line, format=place.format, task=place.task, origin=record.origin)
            record.example = Example(conversation, record.line)
        return record.example

    def count(self, record: _Record) -> dict[str, Any] | None:
        """Count the record; the entry of dropped.jsonl for one that is dropped, None for one that is kept."""
        decided = self.decided.get(record.number)
        verdict = decided.counted if isinstance(decided, Kept) else decided.details.get("verdict") if decided else None
        if verdict:
            self.report.verdicts[self.barrier, verdict] += 1
        if record.dropped is not None:
            return self._drop(record, *record.dropped)
        if self.job.is_last and self.report.wants(KEPT, record.rank):
            self.report.sample(KEPT, record.rank, {"origin": record.origin, **_shown(self.example(record))})
        return None

    def labelled(self, record: _Record) -> bytes:
        """The line with the fields that the barrier gives it; byte for byte as it was without any."""
        decided = self.decided.get(record.number)
        fields = decided.fields if isinstance(decided, Kept) else {}
        return with_fields(record.line, fields) if fields else record.line

    def _drop(self, record: _Record, step: str, drop: Drop) -> dict[str, Any]:
        if step != READ:
            self.lost.add(self.example(record))
        self.report.dropped[step, drop.rule] += 1
        if "gram" in drop.details:
            self.report.grams[step, drop.details["gram"]] += 1
        key = f"{step}/{drop.rule}"
        if self.report.wants(key, record.rank):
            shown = _shown(record.example) if record.example and not drop.is_private else {}
            sample = {"origin": record.origin, "value": drop.value, **drop.details, **shown}
            self.report.sample(key, record.rank, sample)
        head = {"task": self.job.place.task, "step": step, "rule": drop.rule, "value": drop.value}
        return {**head, "origin": record.origin, **drop.details}


def with_fields(line: bytes, fields: Mapping[str, Any]) -> bytes:
    """A record with further fields. The rest keeps its bytes, unless the record has one of these fields already."""
    if orjson.loads(line).keys() & fields.keys():
        return json.dumps({**json.loads(line), **fields}, ensure_ascii=False).encode(errors="surrogatepass")
    return line.rstrip()[:-1] + b"," + orjson.dumps(fields)[1:]


def _shown(example: Example) -> dict[str, Any]:
    """The beginning of a record's texts, for the data card."""
    return {"question": example.question[:_SHOWN_CHARACTERS], "answer": example.answer[:_SHOWN_CHARACTERS]}
