"""Tasks of several kinds in one real run: a step is the same however it is split, and a run goes on from a stop to the last bit."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mftcoder.app.results.export import export
from mftcoder.app.training.train import train
from mftcoder.config.load import parse_config
from mftcoder.jsonl import read_jsonl

STEPS = 3
Run = Callable[..., Path]
KINDS: dict[str, Any] = {
    "chat": {"kind": "sft"},
    "code": {"kind": "pretrain"},
    "notes": {"kind": {"name": "pretrain", "documents": "isolated"}},
    "dpo": {"kind": {"name": "dpo", "rpo_alpha": 0.5}},
    "orpo": {"kind": "orpo"},
    "kto": {"kind": "kto"},
    "grpo": {"kind": {"name": "grpo", "beta": 0.05}},
}


def records(name: str) -> list[dict[str, Any]]:
    if name in ("dpo", "orpo"):
        return [{"prompt": f"{n} + 1", "chosen": str(n + 1), "rejected": f"it is {n}"} for n in range(40)]
    if name == "kto":
        return [{"prompt": f"{n} + 2", "completion": str(n + n % 3), "label": n % 3 == 2} for n in range(40)]
    if name == "grpo":
        texts = [[str(n + 3), str(n), f"it is {n + 3}", str(n + 3) * 2] for n in range(40)]
        return [{"prompt": f"{n} + 3", "completions": texts[n], "rewards": [1, 0, 0.25, 0.5]} for n in range(40)]
    if name == "chat":
        return [{"prompt": f"What is {n} + 1?", "completion": str(n + 1)} for n in range(40)]
    return [{"text": f"{name}_{n} = {n}\n" * (n % 4 + 1)} for n in range(40)]


@pytest.fixture
def run(tmp_path: Path, tiny_llama_dir: Path, make_jsonl: Callable[..., Path]) -> Run:
    """`run(name, data={...}, ...)`: three steps of sixteen rows of all kinds, or of those `only`; the run folder."""
    files = {name: str(make_jsonl(f"{name}.jsonl", records(name))) for name in KINDS}

    def start(
        name: str,
        data: dict[str, Any] | None = None,
        adapter: dict[str, Any] | None = None,
        only: Iterable[str] = KINDS,
        balancer: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Path:
        raw = {
            "balancer": balancer or {"name": "uniform"},
            "model": {"model_name_or_path": str(tiny_llama_dir), "dtype": "float32"},
            "adapter": {"lora_rank": 4, **(adapter or {})},
            "tasks": {task: {"path": files[task], **KINDS[task]} for task in only},
            "data": {"max_length": 128, "val_size": 0.2, "num_proc": 1, **(data or {})},
            "train": {
                "max_steps": STEPS, "eval_steps": 100, "save_steps": 1, "report_to": [], "learning_rate": 0.01,
                "per_device_train_batch_size": 16, **fields,
            },
            "backend": {"device": "cpu"},
            "output_dir": str(tmp_path / name),
        }  # fmt: skip
        train(parse_config(raw, origin="test"))
        return tmp_path / name

    return start


def weights(folder: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "model" / "adapter_model.safetensors")


def of_kind(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for _, record in read_jsonl(folder / "metrics.jsonl") if record["kind"] == kind]


def numbers(values: dict[str, float | None]) -> dict[str, float]:
    """With nan for what a step has none of."""
    return {name: float("nan") if value is None else value for name, value in values.items()}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param({}, id="packed"),
        pytest.param(
            {"packing": "none", "padding": "max_length"},
            id="padded",
            marks=pytest.mark.slow(reason="four more runs; the packed ones are four already"),
        ),
    ],
)
def test_steps_of_all_kinds_do_not_depend_on_how_they_are_split(run: Run, data: dict[str, Any]) -> None:
    whole = run("whole", data)
    for size in (8, 1):
        split = run(f"split-{size}", data, per_device_train_batch_size=size, gradient_accumulation_steps=16 // size)
        for first, second in zip(of_kind(whole, "train"), of_kind(split, "train"), strict=True):
            assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
            assert numbers(first["losses"]) == pytest.approx(numbers(second["losses"]), rel=1e-5, nan_ok=True)
            for task, rewards in first["rewards"].items():
                assert numbers(rewards) == pytest.approx(
                    numbers(second["rewards"][task]), rel=1e-3, abs=1e-5, nan_ok=True
                )
            assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)
        torch.testing.assert_close(weights(whole), weights(split), rtol=1e-3, atol=1e-5)


def test_every_kind_is_validated_and_its_loss_falls(run: Run) -> None:
    folder = run("longer", max_steps=60, save_strategy="no")
    first, last = (of_kind(folder, "validation")[at] for at in (0, -1))
    assert set(first["losses"]) == set(KINDS)
    alone = {"grpo"}  # what the other tasks teach raises its bad answers too
    assert all(last["losses"][task] < first["losses"][task] for task in KINDS.keys() - alone), (first, last)
    assert set(last["rewards"]) == {"dpo", "orpo", "kto", "grpo"}
    assert all(last["rewards"][task]["margin"] > first["rewards"][task]["margin"] for task in ("dpo", "orpo", "kto"))
    assert (
        first["losses"]["dpo"] == pytest.approx(np.log(2) + 0.5 * first["losses"]["dpo"], rel=1)
        and last["rewards"]["dpo"]["accuracy"] > 0.5
    )


def test_sampled_answers_above_the_mean_of_their_group_gain_and_the_others_lose(run: Run) -> None:
    """The loss is 1 minus the mean reward in the first step, and lower later on."""
    before, *_, after = of_kind(run("alone", only=["grpo"], max_steps=12, save_strategy="no"), "train")
    rewards = [record["rewards"]["grpo"] for record in (before, after)]
    assert before["losses"]["grpo"] == pytest.approx(1 - rewards[0]["reward"])
    assert after["losses"]["grpo"] < 1 - rewards[1]["reward"] - 0.01
    assert rewards[0]["divergence"] == 0 < rewards[1]["divergence"]


@pytest.mark.slow(reason="two runs of eight steps for each balancer, which needs some steps to move")
@pytest.mark.parametrize(
    "options",
    [{"name": "coba", "warmup_steps": 2, "window": 3}, {"name": "gradnorm", "update_interval": 2}],
    ids=["coba", "gradnorm"],
)
def test_chats_and_sampled_answers_are_balanced_in_one_run_however_a_step_is_split(
    run: Run, options: dict[str, Any]
) -> None:
    runs = [
        run(f"of-{size}", only=["chat", "grpo"], balancer=options, max_steps=8, eval_steps=2, save_strategy="no",
            per_device_train_batch_size=size, gradient_accumulation_steps=16 // size)
        for size in (16, 4)
    ]  # fmt: skip
    steps = [of_kind(folder, "train") for folder in runs]
    for first, second in zip(*steps, strict=True):
        assert first["weights"] == pytest.approx(second["weights"], rel=1e-4)
        assert numbers(first["losses"]) == pytest.approx(numbers(second["losses"]), rel=1e-4)
    weights_of_grpo = [step["weights"]["grpo"] for step in steps[0]]
    assert weights_of_grpo[0] == 0.5 and abs(weights_of_grpo[-1] - 0.5) > 0.01
    assert steps[0][-1]["losses"]["chat"] < steps[0][0]["losses"]["chat"]


def forget_all_but_the_first_step(folder: Path) -> None:
    """As if the run had been killed after its first checkpoint."""
    for step in range(2, STEPS + 1):
        shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}")
    (folder / "checkpoints" / "latest").unlink()


def test_a_run_that_trains_its_embeddings_goes_on_to_the_last_bit_and_is_exported(run: Run, tmp_path: Path) -> None:
    folder = run("run", adapter={"train_embeddings": True})
    first = weights(folder)
    embedding = "base_model.model.model.embed_tokens.weight"
    forget_all_but_the_first_step(folder)
    run("run", adapter={"train_embeddings": True})
    again = weights(folder)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(weights(folder, 1)[embedding], again[embedding])
    export(folder, tmp_path / "model", checkpoint="latest")
    merged = load_file(tmp_path / "model" / "model.safetensors")
    assert torch.equal(merged["model.embed_tokens.weight"], again[embedding])
    assert torch.equal(merged["lm_head.weight"], again["base_model.model.lm_head.weight"])


def test_a_run_of_all_kinds_goes_on_from_a_checkpoint_to_the_last_bit(run: Run) -> None:
    whole, part = run("whole"), run("part")
    forget_all_but_the_first_step(part)
    run("part")
    again, before = weights(part), weights(whole)
    assert again.keys() == before.keys() and all(torch.equal(again[name], before[name]) for name in before)
    np.testing.assert_equal(
        [record["losses"] for record in of_kind(part, "train")],
        [record["losses"] for record in of_kind(whole, "train")],
    )
