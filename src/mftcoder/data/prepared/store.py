"""The store: all samples of a config, made once and found again by a fingerprint of everything that shaped them.

It holds samples, not rows: packing is planned from the lengths, which takes a second for a million samples.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import orjson
import xxhash

from mftcoder.cache import cache_root
from mftcoder.config.kinds import SFT, PretrainKind
from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared.build import build
from mftcoder.data.prepared.columns import TaskSamples, TaskStatistics
from mftcoder.data.records.files import SourceFile, TaskSources, find_sources
from mftcoder.data.records.megatron import TokenFile
from mftcoder.data.rendering.documents import check_token_file
from mftcoder.data.rendering.kinds import template_of
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import DataError
from mftcoder.jsonl import locked
from mftcoder.log import OnProgress, no_progress, warn

STORE_VERSION = 2
"""Raise it when the same input gives other samples or other files, so that old stores are not found."""


@dataclass(frozen=True)
class Store:
    """All samples of a config. `statistics` has one entry per task, in their order."""

    folder: Path
    fingerprint: str
    tasks: tuple[str, ...]
    statistics: tuple[TaskStatistics, ...]
    skipped: tuple[str, ...]
    """The problems skipped with data.on_error: skip, as `path:line: what`."""
    training_files: tuple[tuple[SourceFile, ...], ...]
    validation_files: tuple[tuple[SourceFile, ...], ...]

    def train(self, task: int) -> TaskSamples:
        """The training samples of one task, by its index."""
        return TaskSamples(self.folder / f"{task}-train", task, self.training_files[task])

    def validation(self, task: int) -> TaskSamples:
        """The validation samples of one task, by its index; there may be none."""
        return TaskSamples(self.folder / f"{task}-validation", task, self.validation_files[task])

    def longest_text(self) -> tuple[int, str]:
        """The positions of the longest text of all samples, and its task."""
        both = (
            (split(number).longest_text(), name)
            for number, name in enumerate(self.tasks)
            for split in (self.train, self.validation)
        )
        return max(both)


def prepare(config: RunConfig, *, on_progress: OnProgress = no_progress) -> Store:
    """The store of a config: an existing one if its fingerprint is the same, otherwise made now on all cores.

    Several processes may call this at once: one works, the others wait. DataError lists the bad records of all files.
    `on_progress` gets the bytes of the input files that are read and tokenized.
    """
    cache = cache_root(config.data.cache_dir)
    tokenizer = load_tokenizer(config.model.tokenizer_name_or_path or config.model.model_name_or_path)
    sources = find_sources(config.tasks, cache)
    _check_token_files(config, sources, tokenizer)
    fingerprint = store_fingerprint(config, tokenizer, sources)
    folder = cache / "prepared" / fingerprint
    with _lock(folder.with_name(f"{fingerprint}.lock")):
        if not (folder / "meta.json").exists():
            build(config, sources, folder, on_progress)
    return _open(config, sources, folder, fingerprint)


def _check_token_files(config: RunConfig, sources: list[TaskSources], tokenizer: Tokenizer) -> None:
    """Warn of token files that another tokenizer seems to have made. DataError lists those that one did make."""
    problems: list[str] = []
    for task, found in zip(config.tasks, sources, strict=True):
        for file in (*found.training, *found.validation):
            if not file.has_tokens or not isinstance(task.kind, PretrainKind):
                continue
            try:
                if warning := check_token_file(TokenFile.open(file.path), task.kind, tokenizer):
                    warn(warning)
            except DataError as error:
                problems += error.problems
    if problems:
        raise DataError(*problems)


def store_fingerprint(config: RunConfig, tokenizer: Tokenizer, sources: list[TaskSources]) -> str:
    """128 bits over everything that shapes the samples. The folders of the files are not part of it."""
    data, template = config.data, template_of([task.kind for task in config.tasks], tokenizer, config.data)
    shaped_by = {
        "version": STORE_VERSION,
        "tokenizer": tokenizer.fingerprint,
        "template": [data.chat_template, template.as_jinja()] if template else [],
        "data": data.model_dump(
            mode="json", include={"train_on", "max_length", "over_length", "val_size", "max_val_samples", "on_error"}
        ),
        "tasks": [
            [
                task.name,
                task.format,
                task.max_samples,
                [(file.name, file.digest) for file in found.training],
                [(file.name, file.digest) for file in found.validation],
                *([] if task.kind == SFT else [task.kind.model_dump(mode="json")]),
            ]
            for task, found in zip(config.tasks, sources, strict=True)
        ],
    }
    return xxhash.xxh3_128_hexdigest(orjson.dumps(shaped_by))


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Only one process at a time; the lock of a killed process is released by the system."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(path, wait=True))
        except OSError as error:
            raise DataError(
                f"{path.parent}: the cache cannot be written: {error.strerror}. Set data.cache_dir."
            ) from error
        yield


def _open(config: RunConfig, sources: list[TaskSources], folder: Path, fingerprint: str) -> Store:
    meta = orjson.loads((folder / "meta.json").read_bytes())
    training = tuple(task.training for task in sources)
    given = tuple(task.validation for task in sources)
    return Store(
        folder=folder,
        fingerprint=fingerprint,
        tasks=config.task_names,
        statistics=tuple(TaskStatistics(**counts) for counts in meta["statistics"]),
        skipped=tuple(meta["skipped"]),
        training_files=training,
        validation_files=tuple(own or held_out for own, held_out in zip(given, training, strict=True)),
    )
