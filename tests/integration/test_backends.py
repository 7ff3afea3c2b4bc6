"""Backends for many devices, with real processes: the same ten steps as on one, checkpoints that go on anywhere, one voice."""

import importlib.util
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mftcoder.cli import main
from tests.forked import PATIENCE, context, finish
from tests.integration.test_train_cli import TASKS, metrics, same_bits, weights, write_config, write_tasks
from tests.ranks import free_port

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes")
needs_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason="no deepspeed")
STEPS = 10
TOLERANCE = 1e-5
Ranks = Callable[..., list[int]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("sharded"), rows=40)


def be_rank(rank: int, world: int, port: int, arguments: list[str], output: str, first: Callable[[], object]) -> None:
    """What a launcher does for each process: say who it is, then run the command."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    file = Path(f"{output}.{rank}").open("w")  # noqa: SIM115  open to the end, which may print as well
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = file, file
    first()
    main(arguments)


@pytest.fixture(scope="module")
def ranks() -> Ranks:
    """`ranks(2, folder, "train", config, ...)`: the command on so many processes; their exit codes. Output in folder/output.<rank>.

    Each calls `first` before the command.
    """

    def run(world: int, folder: Path, *arguments: object, first: Callable[[], object] = bool) -> list[int]:
        folder.mkdir(parents=True, exist_ok=True)
        common = (world, free_port(), [str(argument) for argument in arguments], str(folder / "output"), first)
        processes = [context().Process(target=be_rank, args=(rank, *common)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
        return [finish(process, 0) for process in processes]

    return run


def output(folder: Path, rank: int = 0) -> str:
    return (folder / f"output.{rank}").read_text()


def config_for(folder: Path, model: Path, data: Path, world: int, **fields: Any) -> Path:
    """The same steps on any number of ranks: four rows, two of them a micro-batch on one rank."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = {"train__gradient_accumulation_steps": 4 // world, "train__max_steps": STEPS}
    # Larger steps of so small a model make the order of summation visible in the third digit of a gradient's norm.
    usual = {
        "adapter__lora_dropout": 0.0,
        "train__learning_rate": 0.002,
        "train__save_steps": 5,
        "train__eval_steps": 5,
    }
    return write_config(folder, model, data, **{**usual, **shape, **fields})


VARIANTS = {
    "lora packed uniform": (),
    "full packed uniform": (("adapter__type", "full"),),
    "lora padded coba": (("data__packing", "none"),),
    "full padded coba": (("adapter__type", "full"), ("data__packing", "none")),
}
COBA = "balancer={name: coba, warmup_steps: 2, window: 4}"


def fields_of(variant: str) -> dict[str, Any]:
    return dict(VARIANTS[variant])


def overrides_of(variant: str) -> tuple[str, ...]:
    return (COBA,) if variant.endswith("coba") else ()


def trajectory(run: Path) -> list[tuple[Any, ...]]:
    """Losses and task weights of each step, and every validation."""
    names = ("loss", "losses", "weights")
    return [
        (record["kind"], record["step"], *(record[name] for name in names if name in record))
        for record in metrics(run)
        if record["kind"] in ("train", "validation")
    ]


def numbers(value: Any) -> Iterable[float]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


def assert_same_run(run: Path, expected: Path) -> None:
    ours, theirs = list(numbers(trajectory(run))), list(numbers(trajectory(expected)))
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)
    # A norm of 7 after ten steps of Adam: its sixth digit is the order of summation.
    norms = [[record["grad_norm"] for record in metrics(of) if "grad_norm" in record] for of in (run, expected)]
    np.testing.assert_allclose(*norms, rtol=10 * TOLERANCE)
    assert_same_weights(run, expected)


def assert_same_weights(run: Path, expected: Path) -> None:
    found, wanted = weights(run), weights(expected)
    assert found.keys() == wanted.keys()
    for name in wanted:
        # Adam divides a gradient by its own size: where it is near 0, the order of summation shows in a single weight.
        far = np.abs(found[name] - wanted[name]) > TOLERANCE
        assert far.mean() < 1e-3, f"{name}: {far.sum()} of {far.size} weights differ by more than {TOLERANCE}"
        np.testing.assert_allclose(found[name], wanted[name], atol=10 * TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def local_runs(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path, data: Path, ranks: Ranks) -> Any:
    """The run folder of each variant on one device, made once."""
    folder = tmp_path_factory.mktemp("local")
    made: dict[str, Path] = {}

    def run(variant: str) -> Path:
        if variant not in made:
            home = folder / variant.replace(" ", "-")
            config = config_for(home, tiny_llama_dir, data, 1, **fields_of(variant))
            assert ranks(1, home, "train", config, *overrides_of(variant), "backend.name=local") == [0], output(home)
            made[variant] = home / "run"
        return made[variant]

    return run


slow = pytest.mark.slow(reason="the same on more ranks, backends or layouts; two to four processes each")
NAMES = ("ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3")


def cases(*all_of_them: tuple[Any, ...], fast: Collection[tuple[Any, ...]]) -> list[Any]:
    """These parameters of a test, backend first; all but the fast ones are marked slow."""
    for case in fast:
        assert case in all_of_them
    return [
        pytest.param(
            *case,
            marks=([] if case in fast else [slow]) + ([needs_deepspeed] if case[0].startswith("deepspeed") else []),
        )
        for case in all_of_them
    ]


@pytest.fixture
def takes_local_steps(tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks, local_runs: Any) -> Any:
    """`takes_local_steps(4, variant, "backend.name=ddp")`: its run on four ranks is that of one device."""

    def check(world: int, variant: str, *overrides: str, to_a_row: int = 1) -> None:
        config = config_for(tmp_path, tiny_llama_dir, data, world // to_a_row, **fields_of(variant))
        codes = ranks(world, tmp_path, "train", config, *overrides_of(variant), *overrides)
        assert codes == [0] * world, output(tmp_path) + output(tmp_path, world - 1)
        assert_same_run(tmp_path / "run", local_runs(variant))

    return check


@pytest.mark.parametrize(
    ("backend", "variant", "world"),
    cases(
        *itertools.product(NAMES, VARIANTS, (2, 4)),
        fast=[
            ("ddp", "lora packed uniform", 2),
            ("ddp", "full padded coba", 2),
            ("fsdp2", "lora packed uniform", 2),
            ("deepspeed_zero3", "full packed uniform", 2),
        ],
    ),
)
def test_ten_steps_are_those_of_one_device(backend: str, variant: str, world: int, takes_local_steps: Any) -> None:
    """A step has one row of one or two tasks a rank, so that tasks are missing on ranks all the time."""
    takes_local_steps(world, variant, f"backend.name={backend}")


@pytest.mark.parametrize("backend", cases(*zip(NAMES), fast=[("fsdp2",)]))
def test_a_run_goes_on_with_another_number_of_ranks(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks, local_runs: Any, backend: str
) -> None:
    """Four ranks to step 5, two to 7 with the same config (steps keep their rows), then one device, to the same end."""
    config = config_for(tmp_path, tiny_llama_dir, data, 4, train__eval_strategy="no")
    stop_early = ("train.lr_scheduler_type=constant", "--allow-changes")
    whole = tmp_path / "whole"
    whole_config = config_for(
        whole, tiny_llama_dir, data, 1, train__eval_strategy="no", train__lr_scheduler_type="constant"
    )
    assert ranks(1, whole, "train", whole_config) == [0]
    name = f"backend.name={backend}"
    assert ranks(4, tmp_path, "train", config, *stop_early, "train.max_steps=5", name) == [0] * 4, output(tmp_path)
    assert ranks(2, tmp_path, "train", config, *stop_early, "train.max_steps=7", name) == [0] * 2, output(tmp_path)
    assert ranks(1, tmp_path, "train", config, *stop_early, "backend.name=local") == [0], output(tmp_path)
    assert_same_run(tmp_path / "run", whole / "run")


@pytest.mark.parametrize("variant", cases(*zip(VARIANTS), fast=[("full padded coba",)]))
def test_copies_of_the_model_in_groups_of_ranks_change_nothing(variant: str, takes_local_steps: Any) -> None:
    takes_local_steps(4, variant, "backend.name=fsdp2", "backend.shard_group_size=2")


@pytest.mark.parametrize(
    ("backend", "offload"),
    cases(
        ("fsdp2", "all"),
        ("deepspeed_zero2", "optimizer"),
        ("deepspeed_zero3", "all"),
        fast=[],
    ),
)
def test_what_is_moved_to_the_hosts_memory_changes_nothing(backend: str, offload: str, takes_local_steps: Any) -> None:
    moved = (f"backend.name={backend}", f"backend.offload={offload}", "train.gradient_checkpointing=true")
    takes_local_steps(2, "full packed uniform", *moved)


@needs_bitsandbytes
@pytest.mark.parametrize("backend", cases(*zip(NAMES[1:]), fast=[("fsdp2",)]))
def test_a_base_in_4_bits_trains_as_on_one_device(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks, backend: str
) -> None:
    """Packed weights cut over two ranks; validation in between, which repacks them on some CPUs where nothing forbids it."""
    runs = []
    for world, name in ((1, "local"), (2, backend)):
        folder = tmp_path / name
        config = config_for(folder, tiny_llama_dir, data, world, model__quantization="4bit")
        assert ranks(world, folder, "train", config, f"backend.name={name}") == [0] * world, output(folder)
        runs.append(folder / "run")
    assert_same_run(runs[1], runs[0])


@pytest.mark.parametrize(
    ("backend", "quantization"),
    [
        ("fsdp2", "fp8"),
        pytest.param("fsdp2", "4bit-fp8", marks=[needs_bitsandbytes, slow]),
        pytest.param("deepspeed_zero3", "fp8", marks=[needs_deepspeed, slow]),
    ],
)
def test_a_base_in_fp8_trains_as_on_one_device(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks, backend: str, quantization: str
) -> None:
    """Its bytes are cut, gathered and never converted. To what bfloat16 and the rounding of rows can hold."""
    losses = []
    for world, name in ((1, "local"), (2, backend)):
        folder = tmp_path / name
        fields = {"model__quantization": quantization, "model__dtype": "bfloat16", "train__max_steps": 4}
        config = config_for(folder, tiny_llama_dir, data, world, **fields)
        assert ranks(world, folder, "train", config, f"backend.name={name}") == [0] * world, output(folder)
        losses.append([record["loss"] for record in metrics(folder / "run")])
    np.testing.assert_allclose(*losses, rtol=5e-3)


@needs_bitsandbytes
def test_a_base_in_8_bits_is_not_cut(tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks) -> None:
    config = config_for(tmp_path, tiny_llama_dir, data, 2, model__quantization="8bit")
    assert ranks(2, tmp_path, "train", config, "backend.name=fsdp2") == [2, 2]
    assert "8-bit weights lose their scales" in output(tmp_path)


@pytest.mark.parametrize(
    ("backend", "world", "to_a_row", "variant"),
    cases(
        *(("ddp", 2, 2, variant) for variant in VARIANTS),
        *(("fsdp2", 4, 2, variant) for variant in VARIANTS),
        ("ddp", 4, 2, "lora padded coba"),
        ("ddp", 4, 4, "full packed uniform"),
        fast=[("ddp", 2, 2, "lora packed uniform")],
    ),
)
def test_ranks_that_share_rows_take_the_steps_of_one_device(
    backend: str, world: int, to_a_row: int, variant: str, takes_local_steps: Any
) -> None:
    """A group of ranks counts as one, in a step's rows and in validation. Four to a row have more ranks than key-value heads."""
    shared = (f"backend.context_parallel_size={to_a_row}", f"backend.name={backend}")
    takes_local_steps(world, variant, *shared, to_a_row=to_a_row)


def test_what_looks_at_whole_samples_sees_them_whole_where_ranks_share_rows(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks
) -> None:
    """Sample means, focal weights of samples and the gradients that GradNorm compares; also with activations made anew."""
    options = (
        "loss={normalization: task_sample, focal: sample}",
        "balancer={name: gradnorm, update_interval: 2}",
        "train.per_device_train_batch_size=2",
    )
    shared = ("backend.context_parallel_size=2", "train.gradient_checkpointing=true")
    for world, own in ((1, ()), (2, shared)):
        home = tmp_path / str(world)
        codes = ranks(world, home, "train", config_for(home, tiny_llama_dir, data, 1), *options, *own)
        assert codes == [0] * world, output(home) + output(home, world - 1)
    assert_same_run(tmp_path / "2" / "run", tmp_path / "1" / "run")


@pytest.mark.slow(
    reason="eight processes; other tests let ranks share rows and let runs go on with other numbers of ranks"
)
def test_a_run_whose_ranks_share_rows_goes_on_anywhere(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks
) -> None:
    """Two ranks a row to step 5, four of which two share a row to 7, then one device: the steps keep their rows."""
    fields = {"train__eval_strategy": "no", "train__lr_scheduler_type": "constant"}
    whole = tmp_path / "whole"
    assert ranks(1, whole, "train", config_for(whole, tiny_llama_dir, data, 1, **fields)) == [0]
    config = config_for(tmp_path, tiny_llama_dir, data, 1, **fields)
    shared = "backend.context_parallel_size=2"
    to_five, to_seven = ("--allow-changes", "train.max_steps=5"), ("--allow-changes", "train.max_steps=7")
    assert ranks(2, tmp_path, "train", config, shared, *to_five) == [0] * 2, output(tmp_path)
    assert ranks(4, tmp_path, "train", config, shared, *to_seven, "backend.name=fsdp2") == [0] * 4, output(tmp_path)
    assert ranks(1, tmp_path, "train", config, "--allow-changes") == [0], output(tmp_path)
    assert_same_run(tmp_path / "run", whole / "run")


@pytest.mark.parametrize(
    ("backend", "adapter"),
    cases(
        ("fsdp2", "lora"),
        ("fsdp2", "full"),
        ("deepspeed_zero2", "full"),
        ("deepspeed_zero3", "full"),
        fast=[("fsdp2", "full")],
    ),
)
def test_bfloat16_shares_have_float32_masters_that_one_device_goes_on_with(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks, backend: str, adapter: str
) -> None:
    """Five of ten steps on two ranks, five on one device; losses as on one device all the way, to what bfloat16 can hold."""
    fields = {"adapter__type": adapter, "model__dtype": "bfloat16", "train__lr_scheduler_type": "constant"}
    whole = tmp_path / "whole"
    config = config_for(whole, tiny_llama_dir, data, 1, train__eval_strategy="no", **fields)
    assert ranks(1, whole, "train", config) == [0], output(whole)
    config = config_for(tmp_path, tiny_llama_dir, data, 2, train__eval_strategy="no", **fields)
    assert ranks(2, tmp_path, "train", config, "train.max_steps=5", f"backend.name={backend}") == [0, 0], output(
        tmp_path
    )
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000005"
    masters = torch.load(checkpoint / "optimizer" / "state.pt")["optimizer"]["masters"]
    assert masters and all(master.dtype == torch.float32 for master in masters)
    saved = {tuple(weight.shape) for weight in load_file(next((checkpoint / "model").glob("*.safetensors"))).values()}
    assert {tuple(master.shape) for master in masters} == saved
    assert ranks(1, tmp_path, "train", config, "--allow-changes") == [0], output(tmp_path)
    losses = [[record["loss"] for record in metrics(of)] for of in (tmp_path / "run", whole / "run")]
    np.testing.assert_allclose(*losses, rtol=5e-3)


@pytest.mark.parametrize("backend", cases(*zip(NAMES[2:]), fast=[("deepspeed_zero2",)]))
def test_zero_goes_on_from_one_device_and_repeats_itself_to_the_last_bit(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks, backend: str
) -> None:
    """One device to step 3; from there on two ranks to step 8, once at a stretch and once with a halt at 6."""
    fields = {"adapter__type": "full", "train__eval_strategy": "no", "train__lr_scheduler_type": "constant"}
    start = config_for(tmp_path, tiny_llama_dir, data, 1, train__max_steps=3, **fields)
    assert ranks(1, tmp_path, "train", start, "backend.name=local") == [0], output(tmp_path)
    halts = {"whole": (8,), "halted": (6, 8)}
    for name, stops in halts.items():
        shutil.copytree(tmp_path / "run", tmp_path / name / "run")
        config = config_for(tmp_path / name, tiny_llama_dir, data, 2, **fields)
        for stop in stops:
            arguments = ("--allow-changes", f"train.max_steps={stop}", f"backend.name={backend}")
            assert ranks(2, tmp_path / name, "train", config, *arguments) == [0, 0], output(tmp_path / name)
    assert same_bits(weights(tmp_path / "whole" / "run"), weights(tmp_path / "halted" / "run"))
    losses = [[record["loss"] for record in metrics(tmp_path / name / "run")] for name in halts]
    assert len(losses[0]) == 8 and losses[0] == losses[1]


@needs_deepspeed
def test_a_step_of_zero_that_is_not_finite_changes_nothing(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks
) -> None:
    """A learning rate that breaks the model in its first step; the next ones are counted and left out, on all ranks alike."""
    config = config_for(tmp_path, tiny_llama_dir, data, 2, train__max_steps=4, train__eval_strategy="no")
    arguments = ("train.learning_rate=1e9", "train.on_nonfinite=skip", "train.warmup_steps=0")
    assert ranks(2, tmp_path, "train", config, *arguments, "backend.name=deepspeed_zero3") == [0, 0], output(tmp_path)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["dropped_steps"] == 3
    assert all(np.isfinite(weight).all() for weight in weights(tmp_path / "run").values())


def test_only_the_first_rank_speaks(tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks) -> None:
    config = config_for(tmp_path, tiny_llama_dir, data, 2, train__max_steps=2)
    assert ranks(2, tmp_path, "train", config) == [0, 0]
    assert "step 2/2" in output(tmp_path, 0) and output(tmp_path, 1) == ""
    (tmp_path / "run" / "config.yaml").unlink()
    assert ranks(2, tmp_path, "train", config, "train.learning_rate=1") == [2, 2]
    assert "train.learning_rate: 0.002 -> 1.0" in output(tmp_path, 0) and output(tmp_path, 1) == ""


def test_one_device_refuses_to_be_started_twice(tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks) -> None:
    config = config_for(tmp_path, tiny_llama_dir, data, 2)
    assert ranks(2, tmp_path, "train", config, "backend.name=local") == [2, 2]
    assert "2 processes were started" in output(tmp_path)
    assert not (tmp_path / "run").exists()


def test_data_errors_are_said_once(tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks) -> None:
    broken = tmp_path / "broken"
    for task in TASKS:
        (broken / task).mkdir(parents=True)
        (broken / task / "part.jsonl").write_text(json.dumps({"chat_rounds": []}) + "\n")
    config = config_for(tmp_path, tiny_llama_dir, broken, 2)
    assert ranks(2, tmp_path, "train", config) == [2, 2]
    assert "part.jsonl:1" in output(tmp_path, 0) and output(tmp_path, 1) == ""
