"""The verbs as functions: they print nothing, return what they made, call back in order, and take models that are loaded."""

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from mftcoder import (
    Interrupted,
    MftError,
    RunConfig,
    compare,
    evaluate,
    export,
    generate,
    load_config,
    prepare,
    train,
    training_steps,
    with_overrides,
)
from mftcoder.errors import ConfigError
from tests.integration.test_train_cli import metrics, weights, write_config, write_tasks


@pytest.fixture
def config(tmp_path: Path, tiny_llama_dir: Path) -> RunConfig:
    """Six steps on two tasks, with a checkpoint every second and a validation every third step."""
    return load_config(write_config(tmp_path, tiny_llama_dir, write_tasks(tmp_path / "data"), adapter__lora_dropout=0))


def loaded(folder: Path) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {"model": AutoModelForCausalLM.from_pretrained(folder, dtype="float32"), "tokenizer": tokenizer}


def test_training_leaves_the_callers_random_state_and_determinism_as_they_were(config: RunConfig) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3).tolist()
    torch.manual_seed(7)
    train(with_overrides(config, ["train.deterministic=true", "train.max_steps=1", "train.eval_strategy=no"]))
    assert torch.rand(3).tolist() == expected
    assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_verbs_print_nothing_and_return_what_they_made(
    config: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [row["samples"] + row["validation_samples"] for row in prepare(config).rows()] == [60, 60]
    result = train(config)
    assert (result.run_dir, result.steps, result.stopped_because) == (config.output_path, 6, "max_steps")
    summary = json.loads((result.run_dir / "summary.json").read_text())
    assert result.best_step == summary["best"]["step"] and result.validation == summary["validation"]
    assert result.rows()[0].keys() == {"task", "before", "after", "best", "lowest", "lowest_step"}
    folder = export(str(result.run_dir), "model")
    assert (folder / "model.safetensors").is_file()
    files = generate(folder, "mini", limit=2, max_new_tokens=8, data_dir=None)
    (score,) = evaluate(files[0], limit=2)
    assert score.metrics_path.is_file() and evaluate(files, limit=2).rows() == [
        {"task": "mini", "model": "model", **vars(score.scores[0])}
    ]
    assert capfd.readouterr() == ("", "")


def test_the_lines_of_a_verb_go_to_logging(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mftcoder")
    train(config)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("mftcoder")]
    assert [line.split(":")[0] for line in lines if line.startswith("validation")] == [
        f"validation at step {step}" for step in (0, 3, 6)
    ]
    assert sum(line.startswith("step ") for line in lines) == 6


def test_callbacks_come_in_the_order_of_what_happened_with_the_records_of_the_run(config: RunConfig) -> None:
    calls: list[tuple[str, Any]] = []
    progress: list[tuple[str, float, float | None]] = []
    result = train(
        config,
        on_step=lambda record: calls.append(("train", record)),
        on_validation=lambda record: calls.append(("validation", record)),
        on_checkpoint=lambda folder: calls.append(("checkpoint", folder)),
        on_progress=lambda title, done, total, note="": progress.append((title, done, total)),
    )
    assert [(kind, value["step"] if kind != "checkpoint" else int(value.name[-2:])) for kind, value in calls] == [
        ("validation", 0), ("train", 1), ("train", 2), ("checkpoint", 2), ("train", 3), ("validation", 3), ("checkpoint", 3),
        ("train", 4), ("checkpoint", 4), ("train", 5), ("train", 6), ("validation", 6), ("checkpoint", 6),
    ]  # fmt: skip
    assert [value for kind, value in calls if kind != "checkpoint"] == metrics(result.run_dir)
    folders = [value for kind, value in calls if kind == "checkpoint"]
    assert folders and all((folder / "files.json").is_file() for folder in folders[-3:])
    assert [step for title, step, total in progress if (title, total) == ("train", 6)] == [1, 2, 3, 4, 5, 6]


def test_what_a_callback_raises_ends_the_run_and_the_same_call_goes_on(config: RunConfig) -> None:
    def stop(record: dict[str, Any]) -> None:
        if record["step"] == 5:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        train(config, on_step=stop)
    steps: list[int] = []
    assert train(config, on_step=lambda record: steps.append(record["step"])).steps == 6
    assert steps == [5, 6]  # from the checkpoint of step 4


def test_a_signal_stops_a_run_after_a_save_and_the_hint_says_where(config: RunConfig) -> None:
    def interrupt(record: dict[str, Any]) -> None:
        if record["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"Step [34] is saved in .*checkpoints. Go on$"):
        train(config, on_step=interrupt)
    assert train(config).steps == 6


def test_a_model_that_is_loaded_trains_to_the_same_numbers(
    config: RunConfig, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    other = with_overrides(config, [f"output_dir={tmp_path / 'loaded'}"])
    train(config)
    result = train(other, **loaded(tiny_llama_dir))
    own, named = weights(result.run_dir), weights(config.output_path)
    assert own.keys() == named.keys() and all((own[name] == named[name]).all() for name in own)
    assert [record["loss"] for record in metrics(result.run_dir)] == [
        record["loss"] for record in metrics(config.output_path)
    ]
    assert (export(result.run_dir, tmp_path / "out") / "tokenizer.json").is_file()
    assert train(other, **loaded(tiny_llama_dir)).steps == 6  # the same call finds the run finished


def test_a_model_that_was_trained_in_place_computes_and_answers_as_the_run_does(
    config: RunConfig, tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = loaded(tiny_llama_dir)
    model = given["model"].eval()
    attention, use_cache = model.config._attn_implementation, model.config.use_cache
    train(config, **given)
    state = (model.config._attn_implementation, model.config.use_cache, model.training)
    assert state == (attention, use_cache, False)
    merged = AutoModelForCausalLM.from_pretrained(export(config.output_path, "out", checkpoint="latest"))
    ids = torch.arange(40).view(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, merged(ids).logits, atol=1e-5, rtol=0)
    options = {"limit": 2, "max_new_tokens": 12, "name": "m"}
    (own,) = generate(model, "mini", tokenizer=given["tokenizer"], out="own", **options)
    (written,) = generate("out", "mini", out="written", **options)
    assert json.loads(own.read_text()) == json.loads(written.read_text())


def test_runs_in_two_threads_at_once_have_the_numbers_of_one_alone(config: RunConfig, tmp_path: Path) -> None:
    runs = [with_overrides(config, [f"output_dir={tmp_path / name}"]) for name in ("one", "two", "alone")]
    with ThreadPoolExecutor(2) as pool:
        assert [done.steps for done in pool.map(train, runs[:2])] == [6, 6]
    train(runs[2])
    one, two, alone = (weights(run.output_path) for run in runs)
    assert all((one[name] == alone[name]).all() and (two[name] == alone[name]).all() for name in alone)


class MicroBatches(IterableDataset[dict[str, Any]]):
    """Those of all steps, as in the example of docs/python.md."""

    def __init__(self, config: RunConfig):
        self.config = config

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (vars(batch) for step in training_steps(self.config) for batch in step.micro_batches)


def test_several_workers_of_a_loader_do_not_give_each_step_twice(config: RunConfig) -> None:
    assert len(list(DataLoader(MicroBatches(config), batch_size=None))) == 12  # 6 steps of 2
    with pytest.raises(ConfigError, match="each of 2 workers would give all steps; use one or none"):
        next(iter(DataLoader(MicroBatches(config), batch_size=None, num_workers=2)))


def test_threads_that_load_models_in_two_dtypes_at_once_write_what_each_writes_alone(
    tiny_llama_dir: Path, tmp_path: Path
) -> None:
    def answers(dtype: str, out: str) -> Any:
        options = {"limit": 1, "max_new_tokens": 4, "name": dtype, "out": tmp_path / out}
        return json.loads(generate(tiny_llama_dir, "mini", dtype=dtype, **options)[0].read_text())

    alone = [answers(dtype, "alone") for dtype in ("float32", "bfloat16")]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(answers, ["float32", "bfloat16"] * 2, ["a", "a", "b", "b"]))
    assert together == alone * 2


def changed(model: Any) -> Any:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1
    return model


@pytest.mark.parametrize(
    ("overrides", "change", "problem"),
    [
        ([], changed, r"has other weights than .*: model\.layers\.1\.mlp\.up_proj\.weight\. Save it"),
        ([], lambda model: model.bfloat16(), "model.dtype: float32: the given model is in bfloat16"),
        (["backend=fsdp2"], lambda model: model, "backend.name: fsdp2: shares a model out"),
    ],
)
def test_a_model_that_is_not_the_one_the_config_names_is_refused(
    config: RunConfig, tiny_llama_dir: Path, overrides: list[str], change: Any, problem: str
) -> None:
    model = change(loaded(tiny_llama_dir)["model"])
    with pytest.raises(MftError, match=problem):
        train(with_overrides(config, overrides), model=model)


def test_a_model_that_is_trained_whole_may_have_any_weights(config: RunConfig, tiny_llama_dir: Path) -> None:
    model = changed(loaded(tiny_llama_dir)["model"])
    assert train(with_overrides(config, ["adapter=full"]), model=model).steps == 6


def test_a_model_that_is_loaded_answers_as_its_folder_does(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"limit": 3, "max_new_tokens": 12, "name": "m"}
    (by_name,) = generate(tiny_llama_dir, ["mini"], out="by-name", dtype="float32", **options)
    given = loaded(tiny_llama_dir)
    given["model"].train()
    (by_object,) = generate(given["model"], "mini", tokenizer=given["tokenizer"], out="loaded", **options)
    assert json.loads(by_object.read_text()) == json.loads(by_name.read_text())
    assert given["model"].training
    said()
    generate(given["model"], "mini", tokenizer=given["tokenizer"], out="loaded", **options)
    assert "3 of 3 samples are already done" in said()
    generate(changed(given["model"]), "mini", tokenizer=given["tokenizer"], out="loaded", **options)
    assert "already done" not in said()


def test_options_that_do_not_fit_are_errors(tiny_llama_dir: Path) -> None:
    given = loaded(tiny_llama_dir)
    with pytest.raises(MftError, match="name: a model that is loaded needs one"):
        generate(given["model"], "mini", tokenizer=given["tokenizer"])
    with pytest.raises(MftError, match="dtype: comes too late"):
        generate(given["model"], "mini", tokenizer=given["tokenizer"], name="m", dtype="float32")
    with pytest.raises(MftError, match="tokenizer: is for a model that is loaded already"):
        generate(tiny_llama_dir, "mini", tokenizer=given["tokenizer"])
    with pytest.raises(MftError, match="no benchmark is named"):
        generate(tiny_llama_dir)
    with pytest.raises(MftError, match=r"n_sample: unknown option\. Did you mean 'n_samples'"):
        generate(tiny_llama_dir, "mini", n_sample=2)


@pytest.mark.slow(reason="two trainings, each in a process; test_compare has the same by the command")
def test_a_comparison_is_a_value_with_a_row_a_method(
    config: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = compare(with_overrides(config, ["train.max_steps=3"]), ["uniform"], alone=False)
    assert [row["name"] for row in found.rows()] == ["uniform"] and isinstance(found.rows()[0]["kept_loss"], float)
    assert found.page.is_file() and capfd.readouterr() == ("", "")
