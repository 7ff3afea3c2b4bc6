"""Checkpoints appear complete or not at all, and damage is found before training."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from mftcoder.config.schema import RunConfig
from mftcoder.errors import CheckpointError
from mftcoder.registry import BALANCERS
from mftcoder.training.checkpoints.checkpoint import (
    FREE_FIELDS,
    CheckpointStore,
    Progress,
    differing_fields,
    free_fields,
    lasting_changes,
    load_checkpoint,
    random_state,
    rows_of_step,
    set_random_state,
)


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


def test_newest_is_the_checkpoint_that_was_saved_last(store: CheckpointStore) -> None:
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
def test_after_a_changed_byte_the_previous_checkpoint_is_taken_with_a_message(
    store: CheckpointStore, said: list[str], name: str
) -> None:
    save(store, 1)
    file = save(store, 2) / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    newest = store.newest()
    assert newest and newest.progress.step == 1
    assert (
        len(said) == 1
        and "step-00000002: damaged checkpoint" in said[0]
        and "Trying the checkpoint before it" in said[0]
    )


def test_a_missing_file_is_damage(store: CheckpointStore) -> None:
    path = save(store, 1)
    (path / "model" / "weights").unlink()
    with pytest.raises(CheckpointError, match=r"model/weights is missing"):
        load_checkpoint(path)


def test_only_damaged_checkpoints_are_an_error_and_not_a_fresh_start(store: CheckpointStore) -> None:
    (save(store, 1) / "progress.json").write_text("{")
    with pytest.raises(CheckpointError, match="all 1 checkpoints are damaged"):
        store.newest()


def test_a_full_disk_leaves_the_previous_checkpoint(store: CheckpointStore) -> None:
    save(store, 1)

    def full(folder: Path) -> None:
        write_parts(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    store.begin(2)
    with pytest.raises(CheckpointError, match=r"No space left on device\. Earlier checkpoints are intact"):
        store.save(Progress(step=2), full, best=False)
    newest = store.newest()
    assert newest and newest.progress.step == 1
    assert [path.name for path in store.folder.iterdir()].count("step-00000002") == 0
    assert not list(store.folder.glob(".*tmp"))


def test_an_incomplete_checkpoint_is_ignored_and_removed_by_the_next_one(store: CheckpointStore) -> None:
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


def test_a_field_that_the_checkpoints_version_did_not_have_counts_as_its_default() -> None:
    raw = {"model": "m", "tasks": {"a": "data/a"}, "output_dir": "out"}
    saved = RunConfig.model_validate(raw).model_dump(mode="json")
    del saved["train"]["torch_compile"], saved["adapter"]["peft_forward"]
    same = RunConfig.model_validate(raw).model_dump(mode="json")
    other = RunConfig.model_validate({**raw, "train": {"torch_compile": True}}).model_dump(mode="json")
    assert differing_fields(saved, same) == []
    assert differing_fields(saved, other) == ["train.torch_compile: 'auto' -> True"]


OLD_OPTIONS = "signal val_batches update_interval warmup_steps window tau variant temperature alpha learning_rate weight_decay layer gain floor"
"""Options that the balancer section of every run folder held, null where not given, before each method had its own."""


@pytest.mark.parametrize("name", BALANCERS.names())
def test_a_run_goes_on_whose_checkpoint_holds_null_for_options_of_other_balancers(name: str) -> None:
    raw = {"model": "m", "tasks": {"a": "data/a"}, "output_dir": "out"}
    now = RunConfig.model_validate({**raw, "balancer": name}).model_dump(mode="json")
    saved = {
        **now,
        "balancer": {**dict.fromkeys(OLD_OPTIONS.split()), "val_share": None, "val_rows": None, "name": name},
    }
    assert differing_fields(saved, now) == lasting_changes(saved, now) == []
    if name == "coba":
        other = {**saved, "balancer": {**saved["balancer"], "tau": 7.0}}
        assert differing_fields(other, now) == ["balancer.tau: 7.0 -> 5.0"]


def test_fields_whose_state_is_in_a_checkpoint_cannot_change() -> None:
    saved = {"train": {"optim": "adamw", "weight_decay": 0.0}, "tasks": [{"name": "a"}, {"name": "b"}]}
    now = {"train": {"optim": "adamw_8bit", "weight_decay": 0.1}, "tasks": [{"name": "b"}, {"name": "a"}]}
    assert lasting_changes(saved, now) == [
        "train.optim: 'adamw' -> 'adamw_8bit'",
        "tasks: ['a', 'b'] -> ['b', 'a']",
    ]


def test_saving_the_same_step_again_replaces_the_checkpoint(store: CheckpointStore) -> None:
    path = save(store, 1)
    (path / "model" / "left").write_text("of the first")
    assert save(store, 1) == path and not (path / "model" / "left").exists()
    assert load_checkpoint(path).progress.step == 1


def test_everything_that_the_loop_needs_to_continue_is_restored(store: CheckpointStore) -> None:
    progress = Progress(
        step=3, tokens_seen=[5, 7], seconds=1.5, best_value=0.1 + 0.2, best_step=2, dropped_steps=1, stalled=2,
        weights=[0.25, 0.75], balancer={"slopes": [[1e-30]]}, unobserved={"tokens": [4.0]},
        validation={"best": {"a": None}}, config={"data": {}}, data_fingerprint="f", rows_per_step=8,
    )  # fmt: skip
    store.begin(3)
    path = store.save(progress, write_parts, best=False)
    assert load_checkpoint(path).progress == progress


def test_a_checkpoint_of_another_version_is_refused_by_its_unknown_field(store: CheckpointStore) -> None:
    path = save(store, 1)
    text = (path / "progress.json").read_text()
    (path / "progress.json").write_text(text.replace('"stalled"', '"stalls"'))
    with pytest.raises(CheckpointError, match=r"damaged checkpoint: .*'stalls'"):
        load_checkpoint(path)


@pytest.mark.parametrize("text", ["", "step-00000009", "../elsewhere", "."])
def test_a_pointer_to_a_missing_checkpoint_is_none(store: CheckpointStore, text: str) -> None:
    save(store, 1)
    (store.folder / "best").write_text(text)
    assert store.pointer("best") is None


def config(batch: int, accumulation: int, *, packing: str = "best_fit", padding: str = "max_length") -> dict[str, Any]:
    return {
        "train": {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation},
        "data": {"packing": packing, "padding": padding},
    }


@pytest.mark.parametrize(
    ("current", "ranks", "free"),
    [
        (config(4, 2), 1, True),
        (config(1, 4), 2, True),
        (config(4, 2), 2, False),  # 16 rows a step, not 8
        (config(8, 1, packing="none", padding="dynamic"), 1, False),  # rows of similar length are put together
        (config(8, 1, packing="none"), 1, True),
    ],
)
def test_a_step_may_be_split_in_another_way_if_its_rows_stay_the_same(
    current: dict[str, Any], ranks: int, free: bool
) -> None:
    found = free_fields(Progress(rows_per_step=8), current, ranks)
    assert found >= FREE_FIELDS
    assert ("train.gradient_accumulation_steps" in found) is ("train.per_device_train_batch_size" in found) is free


def test_a_run_on_more_ranks_keeps_its_rows_unless_the_config_asks_for_another_split() -> None:
    saved = Progress(rows_per_step=8, config=config(4, 2))
    assert rows_of_step(saved, config(4, 2)) == 8
    assert rows_of_step(saved, config(2, 4)) is None


def test_dropout_continues_with_each_ranks_own_random_numbers() -> None:
    states, expected = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(random_state())
        expected.append(torch.rand(3))
    set_random_state(states, rank=1, world_size=2)
    assert torch.equal(torch.rand(3), expected[1])


def test_on_another_number_of_ranks_no_two_have_the_same_random_numbers() -> None:
    """No saved state belongs to a new rank, so each keeps that of its seed."""
    torch.manual_seed(1)
    saved = random_state()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    set_random_state([saved], rank=0, world_size=3)
    assert torch.equal(torch.get_rng_state(), before)
