"""Checkpoints on disk: written under a temporary name, renamed when complete, verified by hash when read.

A checkpoint folder holds `model/` (adapter or full weights, loadable by transformers and peft), `optimizer/state.pt` (moments,
master weights, random states), `optimizer/shares/` (the sharded tensors, if there are any), `progress.json` and `files.json` (sizes
and SHA-256 of the others). It is written under a dotted name, flushed and renamed; then `latest` (and `best`) are replaced. So a
process that is killed at any moment leaves the previous checkpoint intact. Resuming takes the newest complete checkpoint and reports
damaged ones. Which rank writes what, and when, is left to writer.py.
"""

import hashlib
import math
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from mftcoder.config.schema import RunConfig
from mftcoder.errors import CheckpointError, DataError
from mftcoder.jsonl import flush_to_disk, read_json, write_json, write_text
from mftcoder.registry import words
from mftcoder.training.sharded_state import Allocate, allocate_full, insert_tensors, read_shards

_NAME = re.compile(r"step-(\d{8})$")
SHARDS = "optimizer/shares"


@dataclass
class Progress:
    """How far a run is: everything that the loop needs to continue, except weights, moments and random states."""

    step: int = 0
    tokens_seen: list[int] = field(default_factory=list)  # [K] trained tokens
    seconds: float = 0.0
    best_value: float | None = None
    best_step: int = 0
    dropped_steps: int = 0  # steps that updated nothing, because they were not finite
    stalled: int = 0  # validations in a row without a better metric
    weights: list[float] = field(default_factory=list)  # [K] task weights of the next step
    balancer: dict[str, Any] = field(default_factory=dict)
    unobserved: dict[str, list[float]] = field(default_factory=dict)  # losses that the balancer has not observed yet
    # first, best, last, lowest -> task -> mean loss; lowest_step -> task -> step
    validation: dict[str, dict[str, float | None]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    data_fingerprint: str = ""
    rows_per_step: int = 0  # over all ranks; stays the same when a run continues on another number of ranks
    first_step: int = (
        0  # the step that began the present data; above 0 only in runs on sampled answers, whose data are replaced
    )


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on disk."""

    path: Path
    progress: Progress

    @property
    def model_dir(self) -> Path:
        return self.path / "model"

    def optimizer_state(self, allocate: Allocate = allocate_full) -> dict[str, Any]:
        """The saved state, on the CPU. Sharded tensors are read into memory from `allocate`."""
        state: dict[str, Any] = torch.load(self.path / "optimizer" / "state.pt", map_location="cpu", weights_only=True)
        if (self.path / SHARDS).is_dir():
            insert_tensors(state["optimizer"], read_shards(self.path / SHARDS, allocate))
        return state


class CheckpointStore:
    """The `checkpoints` folder of a run."""

    def __init__(self, folder: Path, *, save_total_limit: int | None, say: Callable[[str], None]):
        self.folder = folder
        self._limit = save_total_limit
        self.say = say

    def folder_of(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def temporary_folder_of(self, step: int) -> Path:
        """The folder of a step's checkpoint until it is complete."""
        return self.folder / f".step-{step:08d}.tmp"

    def begin(self, step: int) -> None:
        """Create the temporary folder, and remove what killed runs left incomplete."""
        temporary = self.temporary_folder_of(step)
        with self._errors_of(temporary):
            for left in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(left)
            (temporary / "optimizer").mkdir(parents=True)

    def save(self, progress: Progress, write_parts: Callable[[Path], None], *, best: bool) -> Path:
        """Let `write_parts` fill the folder of `begin`, then make it the newest checkpoint. An error changes nothing."""
        path, temporary = self.folder_of(progress.step), self.temporary_folder_of(progress.step)
        with self._errors_of(temporary):
            write_parts(temporary)
            write_json(temporary / "progress.json", asdict(progress))
            write_json(temporary / "files.json", describe_files(temporary))
            for part in [*temporary.rglob("*"), temporary]:  # the rename must not reach the disk before the content
                flush_to_disk(part)
            if path.exists():  # the step runs again, because its checkpoint was damaged
                shutil.rmtree(path)
            temporary.replace(path)
            write_text(self.folder / "latest", path.name + "\n")
            if best:
                write_text(self.folder / "best", path.name + "\n")
            self._rotate()
        return path

    @contextmanager
    def _errors_of(self, temporary: Path) -> Iterator[None]:
        """Turn errors of writing into CheckpointError, and remove what was written."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(
                f"{self.folder / temporary.stem.removeprefix('.')}: the checkpoint cannot be written: {_first_of(error)}. Earlier "
                "checkpoints are intact. Free some space or repair the folder, then run the same command again."
            ) from error

    def _rotate(self) -> None:
        """Keep only the newest `save_total_limit` checkpoints and the best one."""
        if self._limit is None:
            return
        best = self.pointer("best")
        for path in self.all()[: -self._limit]:
            if path != best:
                shutil.rmtree(path)

    def all(self) -> list[Path]:
        """Checkpoint folders, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.match(path.name) and path.is_dir())

    def pointer(self, name: str) -> Path | None:
        """The folder that `latest` or `best` names; None if there is none."""
        try:
            path = self.folder / (self.folder / name).read_text(encoding="utf-8").strip()
        except OSError:
            return None
        return path if _NAME.match(path.name) and path.is_dir() else None

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint, or None if there are none. Reports each damaged one; CheckpointError if all are."""
        candidates = self.all()[::-1]
        for path in candidates:
            try:
                return load_checkpoint(path)
            except CheckpointError as error:
                self.say(f"{error} Trying the checkpoint before it.")
        if candidates:
            raise CheckpointError(
                f"{self.folder}: all {len(candidates)} checkpoints are damaged. "
                "Start again with train.resume_from_checkpoint=false or another output_dir."
            )
        return None


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in `path`, with its files verified against `files.json`; CheckpointError with the damaged file."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint folder.")
    try:
        expected = read_json(path / "files.json")
        progress = Progress(**read_json(path / "progress.json"))
    except (DataError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint: {error}.") from error
    found = describe_files(path)
    for name in sorted(set(expected) | set(found)):
        if name not in found:
            raise CheckpointError(f"{path}: damaged checkpoint: {name} is missing.")
        if name in expected and expected[name] != found[name]:
            raise CheckpointError(f"{path}: damaged checkpoint: {name} is not what was written.")
    return Checkpoint(path, progress)


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file in `folder` except `files.json`, by relative name."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "files.json"]
    with ThreadPoolExecutor() as threads:  # hashing releases the GIL
        described = threads.map(_describe_file, paths)
        return {path.relative_to(folder).as_posix(): found for path, found in zip(paths, described, strict=True)}


def _describe_file(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _first_of(error: BaseException) -> str:
    """The message; of an error with one cause per rank, the first cause."""
    causes = list(error.failures.values()) if isinstance(error, CheckpointException) else []
    return str(causes[0][0] if causes else error)


# Fields that do not change what a run computes.
FREE_FIELDS = words(
    "output_dir data.cache_dir data.num_proc data.max_errors train.dataloader_num_workers train.logging_steps "
    "train.logging_dir train.report_to train.resume_from_checkpoint train.async_save train.gradient_checkpointing "
    "train.sync_each_batch train.save_format train.save_steps train.save_strategy train.save_total_limit backend.name "
    "backend.device backend.init_timeout_seconds backend.timeout_seconds backend.offload backend.shard_group_size "
    "backend.context_parallel_size"
)


# Fields that decide which optimizer and balancer states a checkpoint holds, so they cannot change.
LASTING_FIELDS = ("adapter.use_dora", "balancer.name", "model.dtype", "train.master_weights", "train.optim")


# Fields whose `auto` takes the value of the checkpoint.
KEPT_BY_AUTO = frozenset({"train.optim"})


# How a step's rows are split; that changes nothing as long as the number of rows is the same.
SPLIT_FIELDS = ("train.per_device_train_batch_size", "train.gradient_accumulation_steps")


def differing_fields(
    saved: dict[str, Any], current: dict[str, Any], *, free: frozenset[str] = FREE_FIELDS
) -> list[str]:
    """`field: saved value -> current value` for each field that differs and is not free. Fields newer than `saved` had their default."""
    before, now = _flatten(_with_newer_fields(saved)), _flatten(current)
    return [
        f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if name not in free and before.get(name) != now.get(name) and not _kept(name, now)
    ]


def _with_newer_fields(saved: dict[str, Any]) -> dict[str, Any]:
    try:
        return RunConfig.model_validate(saved).model_dump(mode="json")
    except ValidationError:  # from a version with other fields: compare it unchanged
        return saved


def lasting_changes(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """`field: saved value -> current value` for changes that no run can continue with: LASTING_FIELDS and the list of tasks."""
    before, now = (
        {**_flatten(config), "tasks": [task["name"] for task in config.get("tasks", ())]} for config in (saved, current)
    )
    return [
        f"{name}: {before[name]!r} -> {now.get(name)!r}"
        for name in (*LASTING_FIELDS, "tasks")
        if name in before and before[name] != now.get(name) and not _kept(name, now)
    ]


def _kept(name: str, now: dict[str, Any]) -> bool:
    return name in KEPT_BY_AUTO and now.get(name) == "auto"


def free_fields(saved: Progress, current: dict[str, Any], data_world_size: int) -> frozenset[str]:
    """FREE_FIELDS, and SPLIT_FIELDS if a step has the same rows as in `saved`."""
    now = _flatten(current)
    rows = math.prod(now[name] for name in SPLIT_FIELDS) * data_world_size
    by_length = now["data.packing"] == "none" and now["data.padding"] == "dynamic"  # grouping depends on the batch size
    return FREE_FIELDS.union(SPLIT_FIELDS if rows == saved.rows_per_step and not by_length else ())


def rows_of_step(saved: Progress, current: dict[str, Any]) -> int | None:
    """Rows per step of a resumed run, on any number of ranks; None if the config changes how a step is split."""
    before, now = _flatten(saved.config), _flatten(current)
    return saved.rows_per_step if all(before[name] == now[name] for name in SPLIT_FIELDS) else None


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, list) and inner and all(isinstance(e, dict) and "name" in e for e in inner):
            inner = {e["name"]: e for e in inner}
        flat |= _flatten(inner, f"{name}.") if isinstance(inner, dict) and inner else {name: inner}
    return flat


def random_state() -> dict[str, Any]:
    """The states of the random generators, for dropout and new weights."""
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(states: list[dict[str, Any]], rank: int, world_size: int) -> None:
    """Restore this rank's `random_state()`; on another number of ranks keep the seed, since no state belongs to this rank."""
    if len(states) != world_size:
        return
    state = states[rank]
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
