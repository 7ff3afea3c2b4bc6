import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import torch

from mftcoder.config.load import parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.loader import PackedBatch, StepData, TrainLoader, ValidationLoader
from mftcoder.data.prepared.store import Store, prepare

LAYOUTS = [{"packing": "best_fit"}, {"packing": "none"}, {"packing": "none", "padding": "max_length"}]
MakeRun = Callable[..., tuple[RunConfig, Store]]


@pytest.fixture
def make_run(tiny_tokenizer_dir: Path, make_jsonl: Callable[..., Path]) -> MakeRun:
    """Three tasks of 40, 9 and 3 samples with very different lengths."""
    rng = np.random.default_rng(0)
    folders = {}
    for name, count in (("large", 50), ("small", 11), ("tiny", 4)):
        records = [
            {"prompt": f"{name} {index}", "completion": " ".join(["word"] * int(rng.integers(1, 40)))}
            for index in range(count)
        ]
        folders[name] = str(make_jsonl(f"{name}.jsonl", records))

    def make(data: dict[str, Any] | None = None, **train: Any) -> tuple[RunConfig, Store]:
        raw = {
            "model": str(tiny_tokenizer_dir),
            "tasks": folders,
            "data": {"max_length": 96, "val_size": 0.2, "num_proc": 1, **(data or {})},
            "train": {"num_train_epochs": 1, **train},
            "output_dir": "run",
        }
        config = parse_config(raw, origin="test")
        return config, prepare(config)

    return make


def samples_of(steps: Iterator[StepData] | list[StepData]) -> Counter[tuple[int, int]]:
    return Counter(tuple(pair) for step in steps for batch in step.micro_batches for pair in batch.samples.tolist())


def every_sample(store: Store) -> Counter[tuple[int, int]]:
    return Counter((task, index) for task in range(len(store.tasks)) for index in range(len(store.train(task))))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world_size", [1, 3])
def test_an_epoch_has_every_sample_once_on_any_number_of_ranks(
    layout: dict[str, str], world_size: int, make_run: MakeRun
) -> None:
    config, store = make_run(layout, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    loaders = [TrainLoader(store, config, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert sum((samples_of(loader.steps()) for loader in loaders), Counter()) == every_sample(store)
    for steps in zip(*(loader.steps() for loader in loaders), strict=True):
        assert len({len(step.micro_batches) for step in steps}) == 1
        assert len({(step.counts.tokens.tobytes(), step.counts.samples.tobytes()) for step in steps}) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_change_of_ranks_loses_and_repeats_no_sample(layout: dict[str, str], make_run: MakeRun) -> None:
    """An epoch of 12 rows per step: two steps on four ranks, the next on three, the rest on one give the same steps."""
    config, store = make_run(layout, per_device_train_batch_size=3, gradient_accumulation_steps=1)
    whole = list(TrainLoader(store, config, step_rows=12).steps())
    seen: Counter[tuple[int, int]] = Counter()
    for world_size, steps in ((4, range(2)), (3, range(2, 3)), (1, range(3, len(whole)))):
        for step in steps:
            parts = [
                next(TrainLoader(store, config, rank=rank, world_size=world_size, step_rows=12).steps(step))
                for rank in range(world_size)
            ]
            assert samples_of(parts) == samples_of([whole[step]])
            seen += samples_of(parts)
    assert seen == every_sample(store)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_counts_of_a_step_equal_those_of_its_batches(layout: dict[str, str], make_run: MakeRun) -> None:
    config, store = make_run(layout, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    ranks = [list(TrainLoader(store, config, rank=rank, world_size=2).steps()) for rank in (0, 1)]
    for step in zip(*ranks, strict=True):
        tokens, samples = np.zeros(3, np.int64), np.zeros(3, np.int64)
        for batch in (batch for part in step for batch in part.micro_batches):
            trained = batch.task_ids[batch.targets != -100]
            tokens += np.bincount(trained.numpy(), minlength=3)
            samples += np.bincount(batch.samples[:, 0].numpy(), minlength=3)
        assert np.array_equal(step[0].counts.tokens, tokens)
        assert np.array_equal(step[0].counts.samples, samples)
        assert step[0].counts.positions == sum(
            int((batch.task_ids >= 0).sum()) for rank in step for batch in rank.micro_batches
        )


def test_all_layouts_hold_the_same_samples_when_one_step_holds_all(make_run: MakeRun) -> None:
    steps = []
    for layout in LAYOUTS:
        config, store = make_run({**layout, "max_length": 256}, per_device_train_batch_size=100)
        (step,) = TrainLoader(store, config).steps()
        steps.append(step)
    assert samples_of([steps[0]]) == samples_of([steps[1]]) == samples_of([steps[2]]) == every_sample(store)
    tokens = [sorted(step.micro_batches[0].targets[step.micro_batches[0].targets != -100].tolist()) for step in steps]
    assert tokens[0] == tokens[1] == tokens[2]
    shapes = [tuple(step.micro_batches[0].input_ids.shape) for step in steps]
    assert shapes[0][1] == shapes[2][1] == 256 > shapes[1][1] and shapes[1][1] % 8 == 0


def check_layout(batch: PackedBatch, store: Store) -> None:
    """Every sample is in its row as it was tokenized, positions restart, padding is separate."""
    pairs = iter(batch.samples.tolist())
    for row in range(len(batch.input_ids)):
        starts = torch.nonzero(batch.position_ids[row] == 0).flatten().tolist()
        for start, stop in zip(starts, [*starts[1:], batch.input_ids.shape[1]], strict=True):
            here = (row, slice(start, stop))
            assert batch.position_ids[here].tolist() == list(range(stop - start))
            if batch.task_ids[row, start] == -1:
                assert (batch.targets[here] == -100).all() and stop == batch.input_ids.shape[1]
                continue
            task, index = next(pairs)
            sample = store.train(task).sample(index)
            assert batch.input_ids[here].tolist() == sample.input_ids.tolist()
            assert batch.targets[here].tolist() == sample.targets.tolist()
            assert (batch.task_ids[here] == task).all()
    assert next(pairs, None) is None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_hold_their_samples_one_after_the_other(layout: dict[str, str], make_run: MakeRun) -> None:
    config, store = make_run(layout, per_device_train_batch_size=3)
    for step in TrainLoader(store, config).steps():
        for batch in step.micro_batches:
            check_layout(batch, store)


def same(left: list[StepData], right: list[StepData]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for one, two in zip(left, right, strict=True)
        for a, b in zip(one.micro_batches, two.micro_batches, strict=True)
        for name in ("input_ids", "targets", "position_ids", "task_ids", "samples")
    )


def test_a_run_continues_from_any_step(make_run: MakeRun) -> None:
    config, store = make_run({"packing": "none"}, per_device_train_batch_size=2, max_steps=40)
    steps = list(TrainLoader(store, config).steps())
    assert len(steps) == 40
    assert same(list(TrainLoader(store, config).steps(17)), steps[17:])


def test_worker_processes_change_nothing(make_run: MakeRun) -> None:
    config, store = make_run(per_device_train_batch_size=1, max_steps=3)
    other = config.model_copy(update={"train": config.train.model_copy(update={"dataloader_num_workers": 1})})
    assert same(list(TrainLoader(store, other).steps(1)), list(TrainLoader(store, config).steps(1)))


def watched(
    loader: TrainLoader, monkeypatch: pytest.MonkeyPatch, broken: int | None = None
) -> "Queue[tuple[int, str]]":
    """Record each step as `(number, thread)` when it is made; making the step `broken` fails."""
    made: Queue[tuple[int, str]] = Queue()
    make = loader.step

    def step(number: int) -> StepData:
        if number == broken:
            raise OSError(f"step {number} cannot be read")
        data = make(number)
        made.put((number, threading.current_thread().name))
        return data

    monkeypatch.setattr(loader, "step", step)
    return made


def test_the_next_step_is_made_in_a_thread_while_this_one_runs(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = make_run(per_device_train_batch_size=1, max_steps=5)
    loader = TrainLoader(store, config)
    made = watched(loader, monkeypatch)
    steps = loader.steps(1)
    next(steps)
    assert [made.get(timeout=300)[0], made.get(timeout=300)[0]] == [1, 2]  # nobody has asked for 2 yet
    next(steps)
    number, thread = made.get(timeout=300)
    assert number == 3 and thread.startswith("next-step") and made.empty()
    steps.close()
    assert not any(thread.name.startswith("next-step") for thread in threading.enumerate())


def test_a_step_that_cannot_be_made_fails_when_it_is_requested(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = make_run(per_device_train_batch_size=1, max_steps=5)
    loader = TrainLoader(store, config)
    watched(loader, monkeypatch, broken=2)
    steps = loader.steps()
    next(steps), next(steps)
    with pytest.raises(OSError, match="step 2 cannot be read"):
        next(steps)


def test_worker_processes_do_not_rerun_a_script_without_a_main_guard(make_run: MakeRun, tmp_path: Path) -> None:
    config, _ = make_run(max_steps=2, dataloader_num_workers=1)
    script = tmp_path / "no_guard.py"
    script.write_text(
        "import sys\nfrom mftcoder.config.schema import RunConfig\nfrom mftcoder.data.batches.loader import TrainLoader\n"
        "from mftcoder.data.prepared.store import prepare\nconfig = RunConfig.model_validate_json(sys.argv[1])\n"
        "print(len(list(TrainLoader(prepare(config), config).steps())))\n"
    )
    command = [sys.executable, str(script), config.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_loading_does_not_use_the_runs_random_numbers(make_run: MakeRun) -> None:
    config, store = make_run()
    before = torch.get_rng_state()
    next(TrainLoader(store, config).steps())
    next(iter(ValidationLoader(store, config)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rank_without_rows_runs_a_row_of_padding(make_run: MakeRun) -> None:
    config, store = make_run({"packing": "none"}, per_device_train_batch_size=60)
    ranks = [list(TrainLoader(store, config, rank=rank, world_size=60).steps()) for rank in (0, 59)]
    batch = ranks[0][-1].micro_batches[-1]
    assert len(ranks[0]) == len(ranks[1]) == 1
    assert len(batch.samples) == 0 and (batch.targets == -100).all() and (batch.task_ids == -1).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world_size", [1, 3])
def test_validation_is_complete_on_any_number_of_ranks(
    layout: dict[str, str], world_size: int, make_run: MakeRun
) -> None:
    config, store = make_run(layout, per_device_eval_batch_size=4)
    loaders = [ValidationLoader(store, config, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = Counter(tuple(pair) for loader in loaders for batch in loader for pair in batch.samples.tolist())
    assert seen == Counter((task, index) for task in range(3) for index in range(len(store.validation(task))))
    tokens = [int((batch.targets != -100).sum()) for loader in loaders for batch in loader]
    assert sum(tokens) == loaders[0].counts.tokens.sum()
    assert np.array_equal(loaders[0].counts.samples, loaders[-1].counts.samples)


def test_epochs_have_the_expected_number_of_steps(make_run: MakeRun) -> None:
    config, store = make_run({"packing": "none"}, per_device_train_batch_size=7, num_train_epochs=2)
    loader = TrainLoader(store, config)
    samples = sum(len(store.train(task)) for task in range(3))
    assert loader.total_steps == -(-2 * samples // 7)
    assert loader.steps_per_epoch == samples / 7
    assert set(samples_of(loader.steps()).values()) == {2}
