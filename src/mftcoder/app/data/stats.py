"""`mft data stats`: what is in files, folders, or the tasks of a recipe or config. Writes nothing but the page that is asked for."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mftcoder import __version__
from mftcoder.cache import cache_root
from mftcoder.config.data import DataConfig, TaskConfig
from mftcoder.config.load import load_config, read_config_file
from mftcoder.curation.duplicates.config import DedupConfig, minhash_library
from mftcoder.curation.pipeline.recipe import load_recipe
from mftcoder.curation.pipeline.workers import Workers, open_workers
from mftcoder.curation.stats.count import COUNTING, Counting, CountJob
from mftcoder.curation.stats.summary import Counted, summary
from mftcoder.data.records.files import BLOCK_BYTES, SourceFile, TaskSources, find_sources, read_blocks
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import ConfigError, DataError
from mftcoder.jsonl import scratch_folder
from mftcoder.log import OnProgress

_CONFIGS = (".yaml", ".yml", ".json")
_SMALL_INPUT = 2 * BLOCK_BYTES  # counted before a second process would have started


@dataclass(frozen=True)
class StatsOptions:
    """What is counted. A config brings its own tokenizer, template and max_length; these take their place."""

    tokenizer: str | None = None
    chat_template: str | None = None
    max_length: int | None = None
    near: bool = False
    num_proc: int | None = None


@dataclass(frozen=True)
class _Given:
    """The tasks that the paths name, and what their config says of tokens."""

    tasks: tuple[TaskConfig, ...]
    tokenizer: str | None = None
    data: DataConfig = DataConfig()
    max_length: int | None = None


def stats(paths: Sequence[Path], options: StatsOptions, on_progress: OnProgress) -> dict[str, Any]:
    """The summary of some paths, each a task with the name of its path, or of one recipe or config."""
    given = _with_options(_given(paths), options)
    sources = find_sources(given.tasks, cache_root())
    compared = DedupConfig(near=options.near, keep="first")
    if options.near:
        minhash_library()
    if given.tokenizer is not None:
        load_tokenizer(given.tokenizer)  # its errors come before any work
    counting = Counting(compared, given.tokenizer, given.data, given.max_length)
    with scratch_folder("mftcoder-stats") as folder:
        sets = _count(given.tasks, sources, counting, folder, options.num_proc, on_progress)
        if not any(one.counts.statistics.records for one in sets):
            raise DataError(*(line for one in sets for line in one.counts.problems), "no record can be read")
        found = summary(sets, compared, given.max_length)
    template = given.data.chat_template if given.tokenizer else None
    return {"mftcoder": __version__, "tokenizer": given.tokenizer, "chat_template": template, **found}


def _given(paths: Sequence[Path]) -> _Given:
    configs = [path for path in paths if path.suffix in _CONFIGS]
    if configs and len(paths) > 1:
        raise ConfigError(f"{configs[0]}: give one recipe or config alone, or files and folders of records")
    if not configs:
        return _Given(_tasks(paths))
    if "steps" in read_config_file(configs[0]):
        return _Given(load_recipe(configs[0]).tasks)
    config = load_config(configs[0])
    tokenizer = config.model.tokenizer_name_or_path or config.model.model_name_or_path
    return _Given(config.tasks, tokenizer, config.data, config.data.max_length)


def _tasks(paths: Sequence[Path]) -> tuple[TaskConfig, ...]:
    tasks = tuple(TaskConfig(name=path.resolve().name.split(".")[0] or "data", path=str(path)) for path in paths)
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(*(f"two paths have the name {name}. Write a recipe that gives them names" for name in twice))
    return tasks


def _with_options(given: _Given, options: StatsOptions) -> _Given:
    tokenizer = options.tokenizer or given.tokenizer
    if tokenizer is None and (options.max_length is not None or options.chat_template is not None):
        raise ConfigError("--max-length and --chat-template are for tokens: give --tokenizer MODEL too")
    max_length = options.max_length or given.max_length
    data = DataConfig.model_validate(
        given.data.model_dump(exclude_unset=True)
        | ({"chat_template": options.chat_template} if options.chat_template else {})
        | ({"max_length": max_length} if max_length else {})
    )
    return _Given(given.tasks, tokenizer, data, max_length)


def _count(
    tasks: Sequence[TaskConfig],
    sources: Sequence[TaskSources],
    counting: Counting,
    folder: Path,
    num_proc: int | None,
    on_progress: OnProgress,
) -> list[Counted]:
    """The counts of each set, in the order of the tasks. Blocks are counted on all cores."""
    files = [file for found in sources for file in (*found.training, *found.validation)]
    total = sum(file.size for file in files)
    zipped = any(file.path.suffix == ".gz" for file in files)
    processes = 1 if total * (4 if zipped else 1) < _SMALL_INPUT else num_proc or os.cpu_count() or 1
    sets: list[Counted] = []
    before = 0
    with open_workers(processes, {COUNTING: counting}) as workers:
        for task, found in zip(tasks, sources, strict=True):
            for split, part in (("train", found.training), ("validation", found.validation)):
                if not part:
                    continue
                sets.append(Counted(task.name, split))
                for read in _count_set(sets[-1], _jobs(task, part, folder / str(len(sets))), workers):
                    on_progress("counting", before + read, total)
                before += sum(file.size for file in part)
    return sets


def _count_set(one: Counted, jobs: Iterator[CountJob], workers: Workers) -> Iterator[int]:
    """Take the counts of each block in; yields the bytes read of the file that it is from."""
    under_way: deque[CountJob] = deque()

    def noted() -> Iterator[CountJob]:
        for job in jobs:
            under_way.append(job)
            yield job

    for counts in workers.map(noted()):
        job = under_way.popleft()
        one.counts.merge(counts)
        one.sketches.append(job.target)
        yield job.block.read


def _jobs(task: TaskConfig, files: Sequence[SourceFile], folder: Path) -> Iterator[CountJob]:
    folder.mkdir()
    number = 0
    for file in files:
        for block in read_blocks(file, BLOCK_BYTES):
            yield CountJob(task.name, task.kind, task.format, str(file.path), block, folder / f"{number:06d}")
            number += 1
