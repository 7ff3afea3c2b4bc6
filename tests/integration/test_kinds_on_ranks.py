"""Tasks of all kinds in one run on two real ranks: each backend takes the steps of one device, references and KTO's z included."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.test_backends import Ranks, assert_same_weights, needs_deepspeed, numbers, output, ranks
from tests.integration.test_kinds import KINDS, records
from tests.integration.test_train_cli import metrics

__all__ = ["ranks"]
ROWS = 16  # of a step, over all ranks
SHARED = "backend.context_parallel_size=2"
WITHOUT_LORA = {**KINDS, "grpo": {"kind": "grpo"}}  # its divergence needs LoRA
CASES = [
    ("fsdp2", "lora", ()),
    ("fsdp2", "full", ()),
    ("deepspeed_zero2", "lora", ()),
    ("deepspeed_zero3", "lora", ()),
    ("deepspeed_zero3", "full", ()),
    ("ddp", "lora", (SHARED,)),
    ("ddp", "full", (SHARED,)),
]
Written = Callable[..., Path]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path) -> Written:
    """`written(folder, "lora", 2)`: the config of three steps of all kinds, whose rows are divided among so many ranks."""
    data = tmp_path_factory.mktemp("kinds")
    for name in KINDS:
        (data / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records(name)))

    def write(folder: Path, adapter: str, rows: int) -> Path:
        kinds = KINDS if adapter == "lora" else WITHOUT_LORA
        config = {
            "model": {"model_name_or_path": str(tiny_llama_dir), "dtype": "float32"},
            "adapter": {"type": adapter, "lora_rank": 4},
            "tasks": {name: {"path": str(data / f"{name}.jsonl"), **kind} for name, kind in kinds.items()},
            "data": {"max_length": 128, "val_size": 0.2, "num_proc": 1, "cache_dir": str(folder / "cache")},
            "train": {
                "max_steps": 3, "eval_steps": 100, "save_steps": 100, "report_to": [], "learning_rate": 0.001,
                "per_device_train_batch_size": rows,
            },
            "backend": {"device": "cpu"},
            "output_dir": str(folder / "run"),
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return folder / "config.json"

    return write


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, written: Written, ranks: Ranks) -> Callable[[str], Path]:
    """The run folder of one device with this adapter, made once."""
    made: dict[str, Path] = {}

    def run(adapter: str) -> Path:
        if adapter not in made:
            folder = tmp_path_factory.mktemp("alone")
            assert ranks(1, folder, "train", written(folder, adapter, ROWS)) == [0], output(folder)
            made[adapter] = folder / "run"
        return made[adapter]

    return run


def measured(run: Path) -> list[dict[str, Any]]:
    """What every step and validation measured."""
    kept = ("kind", "step", "loss", "losses", "rewards")
    return [{name: record[name] for name in kept if name in record} for record in metrics(run)]


@pytest.mark.slow(reason="two processes, each with a model, and one run on one device for each adapter")
@pytest.mark.parametrize(
    ("backend", "adapter", "overrides"),
    [pytest.param(*case, marks=[needs_deepspeed] if case[0].startswith("deepspeed") else []) for case in CASES],
)
def test_steps_of_all_kinds_are_those_of_one_device(
    tmp_path: Path,
    written: Written,
    alone: Callable[[str], Path],
    ranks: Ranks,
    backend: str,
    adapter: str,
    overrides: tuple[str, ...],
) -> None:
    """Losses, rewards and gradients of three steps, and the validations before and after them."""
    config = written(tmp_path, adapter, ROWS if overrides else ROWS // 2)
    codes = ranks(2, tmp_path, "train", config, f"backend.name={backend}", *overrides)
    assert codes == [0, 0], output(tmp_path) + output(tmp_path, 1)
    found, expected = measured(tmp_path / "run"), measured(alone(adapter))
    assert [set(record) for record in found] == [set(record) for record in expected]
    assert set(found[0]["rewards"]) == {"dpo", "orpo", "kto", "grpo"}
    np.testing.assert_allclose(list(numbers(found)), list(numbers(expected)), rtol=1e-6, atol=1e-6)
    # Adam's second step divides by what rounding changed in the first.
    norms = [
        [record["grad_norm"] for record in metrics(run) if "grad_norm" in record]
        for run in (tmp_path / "run", alone(adapter))
    ]
    assert len(norms[0]) == 3
    np.testing.assert_allclose(*norms, rtol=1e-5)
    assert_same_weights(tmp_path / "run", alone(adapter))
