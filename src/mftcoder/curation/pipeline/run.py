"""Files -> blocks -> a curated folder: the steps of a recipe on all cores, in bounded memory, resumable to the block.

Steps that look at one record at a time run together in a stage; a barrier (it compares records) ends a stage. A killed run leaves its
finished blocks in a work folder beside the output, and the same command goes on with them. What the result looks like on disk is left
to output.py.
"""

import gzip
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson
import xxhash

from mftcoder import __version__
from mftcoder.curation.example import Drop
from mftcoder.curation.pipeline.blocks import BlockJob, BlockReport, Kept, Place, RecordStep, kept_path
from mftcoder.curation.pipeline.recipe import Recipe
from mftcoder.curation.pipeline.workers import Workers, open_workers
from mftcoder.data.records.files import BLOCK_BYTES, Block, SourceFile, TaskSources, read_blocks
from mftcoder.errors import DataError
from mftcoder.jsonl import locked

_SMALL_INPUT = 2 * BLOCK_BYTES  # less than this is done before a second process has started
OnProgress = Callable[[str, int, int], None]
"""What is done at the moment, how much of it is done, and how much there is."""
OnBlock = Callable[["BlockFiles", bool], None]
"""Called with each block of a stage, in their order, when it is finished; true in the last stage."""


class InputError(DataError):
    """Input or recipe must be changed. Then the blocks that are finished are of no use to the next run."""


@dataclass(frozen=True)
class BlockFiles:
    """The files of a finished block: `target` without an ending."""

    place: Place
    target: Path


class Barrier(Protocol):
    """A step that compares records with each other."""

    def decide(
        self, blocks: Sequence[BlockFiles], workers: Workers, on_progress: OnProgress
    ) -> Iterable[Mapping[int, Drop | Kept]]:
        """For each block, what becomes of its records by line number; a record that is not named is kept."""


@dataclass(frozen=True)
class Stage:
    """A barrier (none in the first stage), then steps that look at one record at a time."""

    barrier: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """The blocks and the reports of each stage."""

    stages: tuple[Stage, ...]
    blocks: tuple[tuple[BlockFiles, ...], ...]
    reports: tuple[Mapping[str, BlockReport], ...]  # a mapping a stage, from task to its summed report
    empty_files: tuple[str, ...]

    def summed(self, stage: int) -> BlockReport:
        total = BlockReport()
        for report in self.reports[stage].values():
            total.merge(report)
        return total


def plan_stages(names: Sequence[str], barriers: Mapping[str, Barrier]) -> tuple[Stage, ...]:
    """The steps in their order, cut before each barrier."""
    stages = [Stage("", ())]
    for name in names:
        if name in barriers:
            stages.append(Stage(name, ()))
        else:
            stages[-1] = Stage(stages[-1].barrier, (*stages[-1].steps, name))
    return tuple(stages)


def fingerprint(recipe: Recipe, sources: Sequence[TaskSources], others: Mapping[str, Any]) -> str:
    """64 bits over what shapes the result: contents and paths of the files, the steps, `others`, the code, the size of a block."""
    parts = {
        "code": [__version__, BLOCK_BYTES, _code_hash()],
        "recipe": recipe.model_dump(mode="json", exclude={"num_proc", "output_dir"}),
        "files": [
            [[str(file.path), file.digest] for file in (*task.training, *task.validation)] + [len(task.training)]
            for task in sources
        ],
        "others": others,
    }
    return xxhash.xxh3_64_hexdigest(orjson.dumps(parts))


def _code_hash() -> str:
    """Of all of curation/ and of what reads records: a rule that was mended makes a new result."""
    package = Path(__file__).parents[2]
    digest = xxhash.xxh3_64()
    for folder in (package / "curation", package / "data" / "records"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


@contextmanager
def exclusive(work: Path) -> Iterator[None]:
    """Only one process works here at a time; DataError if another one does. A killed process lets go by itself."""
    try:
        with locked(work / "lock"):
            yield
    except BlockingIOError as error:
        raise DataError(
            f"{work}: another process is at work in it. Wait for its end, or choose another output"
        ) from error


def run_steps(
    recipe: Recipe,
    sources: Sequence[TaskSources],
    steps: Mapping[str, RecordStep],
    barriers: Mapping[str, Barrier],
    work: Path,
    on_progress: OnProgress,
    on_block: OnBlock,
    meanwhile: Callable[[], object],
) -> Outcome:
    """All stages of a recipe, with their files in `work`. DataError for a data file that cannot be read.

    `meanwhile` is called once, while the worker processes are at their first blocks.
    """
    stages = plan_stages(recipe.step_names, barriers)
    files = [source for task in sources for source in (*task.training, *task.validation)]
    compressed = any(file.path.suffix == ".gz" for file in files)
    total = sum(file.size for file in files)
    small = total * (4 if compressed else 1) < _SMALL_INPUT
    processes = 1 if small else recipe.num_proc or os.cpu_count() or 1
    with open_workers(processes, steps, meanwhile) as workers:
        run = _Run(recipe, stages, workers, work, on_progress, on_block)
        run.first_stage(sources, total)
        for number in range(1, len(stages)):
            run.later_stage(number, barriers[stages[number].barrier])
    return Outcome(stages, tuple(map(tuple, run.blocks)), tuple(run.reports), tuple(run.empty_files))


def _readable_blocks(file: SourceFile) -> Iterator[Block]:
    try:
        yield from read_blocks(file, BLOCK_BYTES)
    except DataError as error:
        damaged = isinstance(error.__cause__, EOFError | zlib.error | gzip.BadGzipFile)
        raise (InputError if damaged else DataError)(*error.problems) from error


class _Run:
    """The blocks and reports of the stages that are done."""

    def __init__(
        self,
        recipe: Recipe,
        stages: Sequence[Stage],
        workers: Workers,
        work: Path,
        on_progress: OnProgress,
        on_block: OnBlock,
    ):
        self.recipe, self.stages, self.workers, self.work = recipe, stages, workers, work
        self.on_progress, self.on_block = on_progress, on_block
        self.blocks: list[list[BlockFiles]] = []
        self.reports: list[dict[str, BlockReport]] = []
        self.empty_files: list[str] = []
        self._bytes_read: list[int] = []

    def first_stage(self, sources: Sequence[TaskSources], total: int) -> None:
        """Read the files and run the steps up to the first barrier."""
        self.blocks.append([])
        self._start_reports()
        for index, report in enumerate(self.workers.map(self._reading_jobs(sources))):
            self._take(self.blocks[0][index], report)
            self.on_progress("reading", self._bytes_read[index], total)

    def _start_reports(self) -> None:
        self.reports.append({task.name: BlockReport() for task in self.recipe.tasks})

    def _take(self, block: BlockFiles, report: BlockReport) -> None:
        self.reports[-1][block.place.task].merge(report)
        self.on_block(block, len(self.reports) == len(self.stages))

    def _reading_jobs(self, sources: Sequence[TaskSources]) -> Iterator[BlockJob]:
        before = 0
        for task, found in zip(self.recipe.tasks, sources, strict=True):
            for split, files in (("validation", found.validation), ("train", found.training)):
                for file in files:
                    place = Place(task.name, split, str(file.path), task.format)
                    yield from self._jobs_of_a_file(place, file, before)
                    before += file.size

    def _jobs_of_a_file(self, place: Place, file: SourceFile, before: int) -> Iterator[BlockJob]:
        empty = True
        for block in _readable_blocks(file):
            empty = empty and not any(True for _ in block.lines())
            target = self._target(0, len(self.blocks[0]))
            self.blocks[0].append(BlockFiles(place, target))
            self._bytes_read.append(before + block.read)
            yield BlockJob(place, block, self.stages[0].steps, target, self.recipe.seed, **self._asked_of(0))
        if empty:
            self.empty_files.append(str(file.path))

    def later_stage(self, number: int, barrier: Barrier) -> None:
        """Let the barrier decide, then take its decision and the steps behind it through the blocks."""
        stage = self.stages[number]
        before = self.blocks[-1]
        self.on_progress(stage.barrier, 0, len(before))
        decisions = barrier.decide(before, self.workers, self.on_progress)
        self.blocks.append([BlockFiles(block.place, self._target(number, i)) for i, block in enumerate(before)])
        self._start_reports()
        for index, report in enumerate(self.workers.map(self._jobs_behind(stage, before, self.blocks[-1], decisions))):
            self._take(self.blocks[-1][index], report)
            self.on_progress(stage.barrier, index + 1, len(before))

    def _jobs_behind(
        self,
        stage: Stage,
        before: Sequence[BlockFiles],
        after: Sequence[BlockFiles],
        decisions: Iterable[Mapping[int, Drop | Kept]],
    ) -> Iterator[BlockJob]:
        for old, new, decided in zip(before, after, decisions, strict=True):
            source = kept_path(old.target)
            options = self._asked_of(self.stages.index(stage))
            yield BlockJob(
                old.place, source, stage.steps, new.target, self.recipe.seed, (stage.barrier, decided), **options
            )

    def _asked_of(self, stage: int) -> dict[str, Any]:
        """What the next barrier needs of a stage, and whether there is none."""
        if stage + 1 == len(self.stages):
            return {"is_last": True}
        steps = dict(zip(self.recipe.step_names, self.recipe.steps, strict=True))
        return {"is_last": False, "sketch": steps[self.stages[stage + 1].barrier].dedup}

    def _target(self, stage: int, block: int) -> Path:
        return self.work / f"{stage}-{block:06d}"
