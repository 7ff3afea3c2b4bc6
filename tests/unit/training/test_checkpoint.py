"""Checkpoints appear whole or not at all, and damage is found before it is trained on."""

import errno
from pathlib import Path

import pytest
import torch

from mftcoder.errors import CheckpointError
from mftcoder.training.checkpoint import CheckpointStore, Progress, differing_fields, lasting_changes, load_checkpoint


def write_parts(folder: Path, step: int = 0) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_bytes(b"w" * 100)
    torch.save({"moments": torch.ones(3) * step}, folder / "optimizer" / "state.pt")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", save_total_limit=2, say=said.append)


def save(store: CheckpointStore, step: int, best: bool = False) -> Path:
    store.begin(step)
    return store.save(Progress(step=step), lambda folder: write_parts(folder, step), best=best)


def test_newest_is_what_was_saved_last(store: CheckpointStore) -> None:
    save(store, 1)
    save(store, 2)
    newest = store.newest()
    assert newest and newest.progress.step == 2
    assert newest.optimizer_state()["moments"].tolist() == [2, 2, 2]


def test_no_checkpoint_is_none(store: CheckpointStore) -> None:
    assert store.newest() is None


def test_rotation_keeps_the_newest_and_the_best(store: CheckpointStore) -> None:
    save(store, 1, best=True)
    for step in (2, 3, 4):
        save(store, step)
    assert [path.name for path in store.all()] == ["step-00000001", "step-00000003", "step-00000004"]
    assert store.pointer("best") == store.folder / "step-00000001"
    assert store.pointer("latest") == store.folder / "step-00000004"


@pytest.mark.parametrize("name", ["model/weights", "optimizer/state.pt", "progress.json"])
def test_a_changed_byte_sends_the_run_back_one_checkpoint_and_says_so(
    store: CheckpointStore, said: list[str], name: str
) -> None:
    save(store, 1)
    file = save(store, 2) / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    newest = store.newest()
    assert newest and newest.progress.step == 1
    assert len(said) == 1 and "step-00000002: damaged checkpoint" in said[0] and "Going back" in said[0]


def test_a_missing_file_is_damage(store: CheckpointStore) -> None:
    path = save(store, 1)
    (path / "model" / "weights").unlink()
    with pytest.raises(CheckpointError, match=r"model/weights is missing"):
        load_checkpoint(path)


def test_nothing_but_damaged_checkpoints_is_an_error_not_a_fresh_start(store: CheckpointStore) -> None:
    (save(store, 1) / "progress.json").write_text("{")
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        store.newest()


def test_a_full_disk_leaves_the_checkpoint_before_it(store: CheckpointStore) -> None:
    save(store, 1)

    def full(folder: Path) -> None:
        write_parts(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    store.begin(2)
    with pytest.raises(CheckpointError, match=r"No space left on device\. Earlier checkpoints are untouched"):
        store.save(Progress(step=2), full, best=False)
    newest = store.newest()
    assert newest and newest.progress.step == 1
    assert [path.name for path in store.folder.iterdir()].count("step-00000002") == 0
    assert not list(store.folder.glob(".*tmp"))


def test_a_half_written_checkpoint_is_not_seen_and_goes_with_the_next(store: CheckpointStore) -> None:
    save(store, 1)
    (store.folder / ".step-00000002.tmp").mkdir()
    newest = store.newest()
    assert newest and newest.progress.step == 1
    save(store, 3)
    assert not list(store.folder.glob(".*tmp"))


def test_only_fields_that_change_the_result_are_named() -> None:
    saved = {"train": {"learning_rate": 1e-4, "logging_steps": 1}, "tasks": [{"name": "a", "weight": 1.0}]}
    current = {"train": {"learning_rate": 2e-4, "logging_steps": 9}, "tasks": [{"name": "a", "weight": 2.0}]}
    assert differing_fields(saved, current) == ["tasks.a.weight: 1.0 -> 2.0", "train.learning_rate: 0.0001 -> 0.0002"]


def test_what_a_checkpoint_holds_a_state_of_lasts_for_the_whole_run() -> None:
    saved = {"train": {"optim": "adamw", "weight_decay": 0.0}, "tasks": [{"name": "a"}, {"name": "b"}]}
    now = {"train": {"optim": "adamw_8bit", "weight_decay": 0.1}, "tasks": [{"name": "b"}, {"name": "a"}]}
    assert lasting_changes(saved, now) == [
        "train.optim: 'adamw' -> 'adamw_8bit'",
        "tasks: ['a', 'b'] -> ['b', 'a']",
    ]
