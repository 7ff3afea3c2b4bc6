"""Which checkpoint a run goes on from, and whether it belongs to the run."""

from pathlib import Path

from mftcoder.config.kinds import GrpoKind
from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared.store import Store
from mftcoder.errors import CheckpointError
from mftcoder.log import say
from mftcoder.training.checkpoints.checkpoint import (
    Checkpoint,
    CheckpointStore,
    Progress,
    differing_fields,
    free_fields,
    lasting_changes,
    load_checkpoint,
)
from mftcoder.training.session import restarted


def where_to_go_on(config: RunConfig) -> str:
    """What the same command would do after a failed step."""
    saved = checkpoint_store(config).all()
    return f"The run is saved up to {saved[-1]}; the same command goes on from there." if saved else ""


def first_step_of_data(config: RunConfig, progress: Progress, *, begun: bool) -> int:
    """The step that began the data of this run. Sampled answers are replaced by newer ones, which are all trained from the first on;
    other data that have changed go on where they were."""
    replaced = not begun and any(isinstance(task.kind, GrpoKind) for task in config.tasks)
    return progress.step if replaced else progress.first_step


def checkpoint_store(config: RunConfig) -> CheckpointStore:
    return CheckpointStore(config.output_path / "checkpoints", save_total_limit=config.train.save_total_limit, say=say)


def checkpoint_to_resume(
    config: RunConfig, store: Store, data_world_size: int, *, allow_changes: bool
) -> Checkpoint | None:
    """The checkpoint to resume from, or None. CheckpointError if it was made with another config or other data."""
    checkpoints = checkpoint_store(config)
    wanted = config.train.resume_from_checkpoint
    if wanted is False and not restarted():
        if checkpoints.all():
            raise CheckpointError(
                f"{checkpoints.folder}: holds checkpoints of an earlier run, and train.resume_from_checkpoint is false. "
                "Remove them or choose another output_dir."
            )
        return None
    newest = checkpoints.newest() if isinstance(wanted, bool) or restarted() else None
    checkpoint = load_checkpoint(Path(wanted)) if newest is None and isinstance(wanted, str) else newest
    if checkpoint is None:
        return None
    current = config.model_dump(mode="json")
    lasting = lasting_changes(checkpoint.progress.config, current)
    if lasting:
        raise CheckpointError(
            *(f"{checkpoint.path}: made by another run: {change}" for change in lasting),
            "The checkpoint's state does not fit these new values. Go on with the old ones, or choose another output_dir.",
        )
    free = free_fields(checkpoint.progress, current, data_world_size)
    changes = differing_fields(checkpoint.progress.config, current, free=free)
    if checkpoint.progress.data_fingerprint != store.fingerprint:
        changes.append("the data has changed since")
    if changes and not allow_changes:
        raise CheckpointError(
            *(f"{checkpoint.path}: made by another run: {change}" for change in changes),
            "Give --allow-changes to go on with the new values, or choose another output_dir.",
        )
    say(f"going on from {checkpoint.path}")
    return checkpoint
