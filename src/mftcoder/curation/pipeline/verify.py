"""The step `verify` over blocks: what can be run is planned in the workers, the sandbox runs it, and each block's verdicts are kept.

A block whose verdicts are on disk is not run again. A sandbox that fails is not the records' fault: their block stays unfinished.
"""

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from mftcoder.curation.example import Drop, Example
from mftcoder.curation.pipeline.blocks import Kept, kept_path, numbered_lines
from mftcoder.curation.pipeline.run import BlockFiles, InputError, OnProgress
from mftcoder.curation.pipeline.workers import Tools, Workers
from mftcoder.curation.verification.config import VerifyConfig
from mftcoder.curation.verification.plan import Planned, Run, plan
from mftcoder.curation.verification.verdict import Verdict, combined, verdict_of
from mftcoder.data.records.formats import read_record
from mftcoder.errors import ExecutionError, UnjudgedError
from mftcoder.execution.languages import LANGUAGES, prepare
from mftcoder.execution.pool import Pool, open_pool
from mftcoder.execution.sandbox import ExecutionResult, Limits, Program
from mftcoder.jsonl import atomic_path
from mftcoder.log import say, warn

_COMPILE_SECONDS = 30.0
OnJudged = Callable[[Sequence[BlockFiles], VerifyConfig], None]
"""Called when all blocks have their verdicts."""


@dataclass(frozen=True)
class PlanJob:
    """Write down what can be run of each record of a block, or find what an earlier run has written."""

    block: BlockFiles
    config: VerifyConfig

    def run(self, steps: Tools) -> Counter[str]:
        """A line a record: its number, and what is planned for each of its answers. Returns the programs by language."""
        path = _plan_path(self.block)
        if not path.exists():
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                for number, line in numbered_lines(kept_path(self.block.target)):
                    planned = [plan(example, self.config) for example in answers_of(self.block, line, self.config)]
                    file.write(orjson.dumps([number, [asdict(one) for one in planned]]) + b"\n")
        return Counter(
            run.language for _, answers in _read_plan(self.block) for planned in answers for run in planned.runs
        )


@dataclass(frozen=True)
class HasField:
    """Whether a record of a block has a field."""

    block: BlockFiles
    field: str

    def run(self, steps: Tools) -> bool:
        """Stops at the first one."""
        return any(self.field in orjson.loads(line) for _, line in numbered_lines(kept_path(self.block.target)))


def answers_of(block: BlockFiles, line: bytes, config: VerifyConfig) -> list[Example]:
    """The record, and after it the record with each of its further answers (`samples`) in place of its last one."""
    first = Example(read_record(line, format=block.place.format, task=block.place.task, origin=""), line)
    return [first, *first.with_other_answers(config.samples)]


def _plan_path(block: BlockFiles) -> Path:
    return block.target.with_suffix(".plan")


def verdict_path(block: BlockFiles) -> Path:
    """The verdicts of a block; complete, or not there."""
    return block.target.with_suffix(".verdicts")


def _read_plan(block: BlockFiles) -> Iterator[tuple[int, list[Planned]]]:
    with _plan_path(block).open("rb") as file:
        for line in file:
            number, answers = orjson.loads(line)
            yield (
                number,
                [
                    Planned(tuple(Run(**run) for run in one["runs"]), tuple(map(Verdict.from_json, one["known"])))
                    for one in answers
                ],
            )


def read_verdicts(block: BlockFiles) -> Iterator[tuple[int, list[Verdict]]]:
    """`(line number, a verdict for each answer)` of a finished block."""
    with verdict_path(block).open("rb") as file:
        for line in file:
            number, answers = orjson.loads(line)
            yield number, list(map(Verdict.from_json, answers))


def circumstances() -> list[str]:
    """What verdicts depend on besides records and code: Python, and the tools of each language that are missing here."""
    return [platform.python_version(), *(f"{name} {row.missing()}" for name, row in sorted(LANGUAGES.items()))]


class Verification:
    """The barrier: runs what can be run, drops what fails, labels what is kept."""

    def __init__(
        self, name: str, config: VerifyConfig, processes: int | None = None, on_judged: OnJudged | None = None
    ):
        self.name, self.config, self.processes, self.on_judged = name, config, processes, on_judged

    def decide(
        self, blocks: Sequence[BlockFiles], workers: Workers, on_progress: OnProgress
    ) -> Iterable[Mapping[int, Drop | Kept]]:
        """For each block, what becomes of its records by line number; read from disk when it is asked for."""
        self._refuse_an_unknown_field(blocks, workers)
        unfinished = [block for block in blocks if not verdict_path(block).exists()]
        if unfinished:
            programs: Counter[str] = sum(workers.map(PlanJob(block, self.config) for block in unfinished), Counter())
            self._run(unfinished, programs, on_progress)
        if self.on_judged is not None:
            self.on_judged(blocks, self.config)
        return ({number: self._decision(answers[0]) for number, answers in read_verdicts(block)} for block in blocks)

    def _refuse_an_unknown_field(self, blocks: Sequence[BlockFiles], workers: Workers) -> None:
        """InputError if no record has the field of the tests that the options name; a warning for that of further answers."""
        field, further = self.config.tests, self.config.samples
        filled = [block for block in blocks if kept_path(block.target).stat().st_size]
        if further and filled and not any(workers.map(HasField(block, further) for block in filled)):
            warn(
                f"warning: verify: samples: no record has the field '{further}', so only records with one question make pairs"
            )
        if field != "auto" and filled and not any(workers.map(HasField(block, field) for block in filled)):
            raise InputError(
                f"verify: tests: no record has the field '{field}'. Name the field that holds the tests, or leave the option out"
            )

    def _run(self, blocks: Sequence[BlockFiles], programs: Counter[str], on_progress: OnProgress) -> None:
        here = _languages_here(programs)
        total = sum(count for name, count in programs.items() if name in here)
        with open_pool(self.config.sandbox, self.processes, here) as pool:
            say(f"sandbox: {pool.level} ({', '.join(pool.covers)}), {pool.size} workers")
            if pool.level == "process":
                warn("warning: level process is the last resort; `mft doctor` says what a stronger one needs.")
            judging = _Judging(blocks, here, self.config)
            for done in judging.run(pool):
                on_progress(self.name, done, total)
        unjudged = judging.unjudged
        if unjudged:
            raise UnjudgedError(
                f"verify: the sandbox failed on {unjudged:,} programs, which says nothing about their records; nothing was written. "
                "Mend the machine (`mft doctor` looks at it); the same command runs only the unfinished blocks again."
            )

    def _decision(self, verdict: Verdict) -> Drop | Kept:
        if verdict.outcome == "failed" and self.config.failed == "drop":
            return Drop(f"failed_{verdict.why}", verdict.detail or verdict.why, {"verdict": verdict.name})
        if verdict.outcome == "not_run" and self.config.not_run == "drop":
            return Drop("not_run", verdict.why, {"verdict": verdict.name})
        return Kept(verdict.name, {"verification": verdict.as_record()} if self.config.label else {})


def _languages_here(languages: Iterable[str]) -> frozenset[str]:
    """Those whose toolchain works; the others are told of once, and their code counts as not run."""
    here = {"python"}
    for name in sorted(set(languages) - here):
        try:
            prepare(name)
            here.add(name)
        except ExecutionError as error:
            warn(f"warning: {LANGUAGES[name].title} is not run: {error}")
    return frozenset(here)


class _Judging:
    """The programs of some blocks on their way through the pool."""

    def __init__(self, blocks: Sequence[BlockFiles], languages: frozenset[str], config: VerifyConfig):
        self.blocks, self.languages = blocks, languages
        self.limits = Limits(seconds=config.timeout, memory_mb=config.memory_mb, compile_seconds=_COMPILE_SECONDS)
        self.under_way: dict[int, _BlockVerdicts] = {}
        self.unjudged = 0

    def run(self, pool: Pool) -> Iterator[int]:
        """Write the verdicts of each block as soon as it is done. Yields the number of programs that have run."""
        for done, (key, result) in enumerate(pool.run(self._programs(), self.limits), start=1):
            block, _, place = key.partition(".")
            self.unjudged += not self.under_way[int(block)].take(int(place), result)
            self._finish(int(block))
            yield done

    def _programs(self) -> Iterator[tuple[str, Program]]:
        for number, block in enumerate(self.blocks):
            verdicts = self.under_way[number] = _BlockVerdicts(block, self.languages)
            for place, (run, _) in list(verdicts.waiting.items()):
                yield f"{number}.{place}", run.program()
            self._finish(number)

    def _finish(self, number: int) -> None:
        """Write the verdicts if none is missing. Those of a block whose sandbox failed are not written."""
        verdicts = self.under_way.get(number)
        if verdicts is not None and not verdicts.waiting:
            verdicts.write()
            del self.under_way[number]


class _BlockVerdicts:
    """The verdicts of a block's answers, as they come in."""

    def __init__(self, block: BlockFiles, languages: frozenset[str]):
        self.block = block
        self.found: list[tuple[int, list[list[Verdict]]]] = []  # line number, and the verdicts on each answer
        self.waiting: dict[int, tuple[Run, list[Verdict]]] = {}  # programs, and where their verdicts go
        for number, answers in _read_plan(block):
            self.found.append((number, [list(planned.known) for planned in answers]))
            for planned, verdicts in zip(answers, self.found[-1][1], strict=True):
                here = [run for run in planned.runs if run.language in languages]
                verdicts += [Verdict.not_run("no_toolchain")] * (len(planned.runs) - len(here))
                self.waiting |= {len(self.waiting) + place: (run, verdicts) for place, run in enumerate(here)}

    def take(self, place: int, result: ExecutionResult) -> bool:
        """Take in a result; False if it is none, because the sandbox failed."""
        run, verdicts = self.waiting[place]
        verdict = verdict_of(result, run.language, tuple(run.checks))
        if verdict is None:
            return False
        verdicts.append(verdict)
        del self.waiting[place]
        return True

    def write(self) -> None:
        """A line a record, in the order of the block."""
        with atomic_path(verdict_path(self.block)) as temporary, temporary.open("wb") as file:
            for number, answers in self.found:
                verdicts = [asdict(combined(found)) for found in answers]
                file.write(orjson.dumps([number, verdicts]) + b"\n")
