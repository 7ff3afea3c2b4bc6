"""Files -> block files -> a store folder, on all cores and in bounded memory.

One process reads, workers tokenize a few megabytes at a time, and the merge reads the finished blocks in order. The store gets
its name by one rename. A killed run leaves its finished blocks, and the next run reuses them.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import orjson

from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared.blocks import MAX_LISTED, BlockJob, BlockMaker, BlockReport, run_job, start_worker
from mftcoder.data.prepared.columns import Split
from mftcoder.data.prepared.split import Tally, merge_blocks
from mftcoder.data.records.files import BLOCK_BYTES, SourceFile, TaskSources, read_blocks
from mftcoder.errors import DataError
from mftcoder.log import OnProgress
from mftcoder.processes import main_module_hidden

_AT_THE_END = 1 << 62  # problems of a whole file come after those of its lines
_SMALL_INPUT = 2 * BLOCK_BYTES  # less than this is done before a second process would have started


_Waiting = dict[Future[BlockReport], "_Block"]


@dataclass(frozen=True)
class _Place:
    """The file and task that a block belongs to; `number` counts the files of all tasks."""

    number: int
    task: int
    split: Split
    file: int
    source: SourceFile

    def rows_path(self, work: Path, index: int) -> Path:
        return work / f"{self.task}-{self.split}-{self.file:06d}-{index:06d}.npz"


def build(config: RunConfig, sources: list[TaskSources], folder: Path, on_progress: OnProgress) -> None:
    """Make the store at `folder`. DataError lists all bad records (up to data.max_errors); then there is no `folder`."""
    work = folder.with_name(f".{folder.name}-{BLOCK_BYTES}.work")  # blocks of another size cannot be reused
    try:
        work.mkdir(parents=True, exist_ok=True)
        _build_in(work, config, sources, on_progress).rename(folder)
    except OSError as error:
        raise DataError(f"{work}: the cache cannot be written: {error.strerror}. Set data.cache_dir.") from error
    shutil.rmtree(work)


def _build_in(work: Path, config: RunConfig, sources: list[TaskSources], on_progress: OnProgress) -> Path:
    target = work / "store"
    shutil.rmtree(target, ignore_errors=True)
    tallies = _Builder(config, sources, work, on_progress).run()
    try:
        statistics = merge_blocks(config, tallies, target)
    except DataError:
        shutil.rmtree(work)
        raise
    skipped = [error for tally in tallies for error in tally.report.errors]
    meta = {"statistics": [asdict(counts) for counts in statistics], "skipped": skipped}
    # This file marks a complete store.
    (target / "meta.json").write_bytes(orjson.dumps(meta, option=orjson.OPT_INDENT_2))
    return target


@dataclass(frozen=True)
class _Block:
    """A block that is being tokenized: its number in its file, and the bytes of all input up to its end."""

    place: _Place
    index: int
    bytes_read: int


class _Builder:
    def __init__(self, config: RunConfig, sources: list[TaskSources], work: Path, on_progress: OnProgress):
        self.config, self.work, self.on_progress = config, work, on_progress
        files = [
            (task, split, index, source)
            for task, found in enumerate(sources)
            for split in get_args(Split)
            for index, source in enumerate(found.training if split == "train" else found.validation)
        ]
        self.places = [_Place(number, *file) for number, file in enumerate(files)]
        self.bytes_total = sum(place.source.size for place in self.places)
        self.bytes_before = self.bytes_done = 0
        self.tallies = [Tally() for _ in config.tasks]
        self.errors: list[tuple[int, int, str]] = []  # number of the file, of the block in it, problem
        self.problems = 0
        self.processes = config.data.num_proc or os.cpu_count() or 1

    def run(self) -> list[Tally]:
        stopped = False
        with self._executor() as submit:
            waiting: _Waiting = {}
            for place in self.places:
                stopped = self._read_file(place, submit, waiting) or stopped
                if stopped:
                    break
            self._collect(waiting, all_of_them=True)
        self._refuse_errors(stopped)
        return self.tallies

    @contextmanager
    def _executor(self) -> Iterator[Callable[[BlockJob], Future[BlockReport]]]:
        """A function that runs jobs: in worker processes, or in this process if there is little to do."""
        model = self.config.model
        tokenizer = model.tokenizer_name_or_path or model.model_name_or_path
        compressed = any(place.source.path.suffix == ".gz" for place in self.places)
        if self.processes == 1 or self.bytes_total * (4 if compressed else 1) < _SMALL_INPUT:
            maker = BlockMaker(tokenizer, self.config.data)
            yield lambda job: _done(maker.run(job))
            return
        pool = ProcessPoolExecutor(
            self.processes, get_context("spawn"), initializer=start_worker, initargs=(tokenizer, self.config.data)
        )
        try:
            yield lambda job: _submit(pool, job)
        except BrokenProcessPool as error:
            raise DataError(
                "a tokenizing process was killed (out of memory?). Type the same command again to continue with the "
                f"finished blocks, perhaps with data.num_proc={max(1, self.processes // 2)}."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _read_file(self, place: _Place, submit: Callable, waiting: _Waiting) -> bool:
        """Submit the blocks of one file; true if reading stops because of too many errors."""
        task = self.config.tasks[place.task]
        tally = self.tallies[place.task]
        problems_before = self.problems
        lines = 0
        try:
            for index, block in enumerate(read_blocks(place.source, BLOCK_BYTES)):
                lines += any(True for _ in block.lines())
                rows_path = None if self._only_checks() else place.rows_path(self.work, index)
                if rows_path:
                    tally.blocks[place.split].append((place.file, rows_path))
                job = BlockJob(block, place.source, task.name, task.kind, task.format, rows_path)
                waiting[submit(job)] = _Block(place, index, self.bytes_before + block.read)
                self._collect(waiting)
                if self._only_checks() and self.problems > self.config.data.max_errors:
                    return True
        except DataError as error:
            self._note(place, _AT_THE_END, error.problems, len(error.problems))
        if not lines and self.problems == problems_before:
            self._note(place, _AT_THE_END, [f"{place.source.path}: is empty. Remove it, or set data.on_error=skip."], 1)
        self.bytes_before += place.source.size
        return False

    def _collect(self, waiting: _Waiting, *, all_of_them: bool = False) -> None:
        """Count finished reports. To bound the memory, wait while more than two blocks per process are running."""
        while waiting and (all_of_them or len(waiting) >= 2 * self.processes):
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                self._count(waiting.pop(future), future.result())

    def _count(self, block: _Block, report: BlockReport) -> None:
        place = block.place
        total = self.tallies[place.task].report
        if place.split == "train":
            total.records += report.records
            total.dropped += report.dropped
            total.untrained += report.untrained
            total.fim += report.fim
        total.tokens += report.tokens
        total.skipped += report.skipped
        self._note(place, block.index, report.errors, report.problems)
        records = sum(tally.report.records for tally in self.tallies)
        tokens = sum(tally.report.tokens for tally in self.tallies)
        self.bytes_done = max(self.bytes_done, block.bytes_read)  # blocks finish in any order
        note = f"{records:,} records, {tokens:,} tokens"
        self.on_progress("tokenizing", self.bytes_done, self.bytes_total, note)

    def _note(self, place: _Place, block: int, errors: Sequence[str], problems: int) -> None:
        self.problems += problems
        left = max(0, MAX_LISTED - len(self.errors))
        self.errors += [(place.number, block, error) for error in errors[:left]]
        total = self.tallies[place.task].report
        total.problems += problems
        total.errors += errors[: max(0, MAX_LISTED - len(total.errors))]

    def _only_checks(self) -> bool:
        """Whether the store is already refused, so that the rest is only read for more errors."""
        return self.problems > 0 and self.config.data.on_error == "fail"

    def _refuse_errors(self, stopped: bool) -> None:
        if not self._only_checks():
            return
        shutil.rmtree(self.work)  # corrected files will have another fingerprint
        # Blocks finish in any order; errors are listed in the order of the files.
        in_order = sorted(self.errors, key=lambda error: error[:2])
        problems = [problem for *_, problem in in_order[: self.config.data.max_errors]]
        more = self.problems - len(problems)
        if more > 0:
            problems.append(f"... and {more} more{' in what was read; reading stopped there' if stopped else ''}")
        raise DataError(*problems)


def _submit(pool: ProcessPoolExecutor, job: BlockJob) -> Future[BlockReport]:
    with main_module_hidden():  # the pool starts processes when jobs arrive
        return pool.submit(run_job, job)


def _done(report: BlockReport) -> Future[BlockReport]:
    future: Future[BlockReport] = Future()
    future.set_result(report)
    return future
