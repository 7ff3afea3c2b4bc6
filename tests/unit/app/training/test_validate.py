"""`mft validate` refuses what `mft train` would: one line each on the standard error, exit code 2."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from mftcoder.app.training.train import train
from mftcoder.app.training.validate import kind_lines, validate
from mftcoder.cli import main
from mftcoder.config.load import parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared.store import prepare
from mftcoder.errors import MftError
from tests.integration.test_train_cli import write_config, write_tasks

NORM = "model.norm.weight"


@pytest.fixture
def folder(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A model folder to break."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


def weights_without_norm(folder: Path) -> None:
    weights = load((folder / "model.safetensors").read_bytes())
    del weights[NORM]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:9000])


def empty_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{}")


def converted_family_with_a_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    config = {**json.loads((folder / "config.json").read_text()), "model_type": "aquila"}
    (folder / "config.json").write_text(json.dumps(config))


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a missing tensor": (weights_without_norm, f"model: its files lack 1 of the model's weights: {NORM}"),
    "a truncated file": (cut_short, "model.safetensors: is damaged or truncated"),
    "an empty index": (empty_index, "model.safetensors.index.json: names no weight file"),
    "an index and a missing file": (converted_family_with_a_missing_shard, "model-00002-of-00002.safetensors: is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_model_folder_is_one_line(
    tmp_path: Path, folder: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    break_it, expected = BROKEN[case]
    break_it(folder)
    config = write_config(tmp_path, folder, write_tasks(tmp_path / "data", 4))
    with pytest.raises(SystemExit) as stop:
        main(["validate", str(config)])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert expected in lines[0]


def test_a_tensor_without_a_place_in_the_model_is_named(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    weights = load((folder / "model.safetensors").read_bytes())
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    main(["validate", str(write_config(tmp_path, folder, write_tasks(tmp_path / "data", 8)))])
    assert "they are not read: model.layers.0.self_attn.q_proj.bias" in capsys.readouterr().out


def test_the_memory_of_another_gpu_is_planned(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    config = write_config(tmp_path, folder, write_tasks(tmp_path / "data", 8))
    main(["validate", str(config), "--gpu", "24GB"])
    said = capsys.readouterr().out
    assert "a GPU of 24 GB has 23.52 GiB" in said
    assert "> recompute nothing" in " ".join(said.split()) and "recompute norms and SwiGLU" in said
    assert "recompute all layers, moments in 8 bits" in said
    main(["validate", str(config), "--gpu", "1GB"])
    assert "A GPU of 8 GB would have room to recompute nothing" in capsys.readouterr().out


def test_the_memory_of_each_plan_is_one_line_of_80_columns_and_no_word_is_cut(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    config = write_config(tmp_path, folder, write_tasks(tmp_path / "data", 8))
    main(["validate", str(config), "--gpu", "24GB", "output_dir=runs/[a]"])
    said = capsys.readouterr().out
    table, _, plans = said[said.index("  plan in all weights") :].partition("plans\n")
    titles, *rows = table.splitlines()
    assert len(titles.split()) == 1 + len(rows[1].split()) and max(map(len, (titles, *rows))) <= 80
    assert rows[0].startswith("> a") and "  a  recompute nothing\n" in plans
    assert len(rows) == len(plans.splitlines()) - 1
    assert "…" not in said and "runs/[a]" in said


def test_on_60_columns_the_memory_of_a_plan_stands_below_its_name(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    config = write_config(tmp_path, folder, write_tasks(tmp_path / "data", 8))
    main(["validate", str(config), "--gpu", "24GB"])
    said = capsys.readouterr().out
    blocks = said[said.index("> recompute nothing\n") :].split("\n    in all ")
    assert len(blocks) > 5 and "recompute all layers, moments in 8 bits\n" in said
    for block in blocks[1:]:
        numbers, _, _ = f"in all {block}".partition("\n  recompute")
        found = {title: float(size) for title, size in re.findall(r"(\w[\w ]*) ([0-9]+\.[0-9]{2})\b", numbers)}
        assert {"in all", "weights", "moments", "activations", "head"} <= found.keys()
        assert found.pop("in all") == pytest.approx(sum(found.values()) - found.get("host", 0), abs=0.05)
        assert max(map(len, numbers.splitlines())) <= 60


def test_the_plan_for_another_gpu_says_which_gpus_multiply_in_fp8(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    config = write_config(tmp_path, folder, write_tasks(tmp_path / "data", 8), model__dtype="bfloat16")
    main(["validate", str(config), "--gpu", "24GB", "model.quantization=fp8"])
    expected = "fp8 (e4m3) on a GPU of compute capability 8.9 or newer (RTX 40 and 50, L4, L40S, H100, H200, B200)"
    assert f"{expected}; emulated on others, at no gain in speed" in capsys.readouterr().out


@pytest.mark.parametrize("gpu", ["large", "0GB", "0x80GB", "-24GB", "24TB"])
def test_a_size_that_no_gpu_has_is_one_line(
    tmp_path: Path, folder: Path, gpu: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, folder, write_tasks(tmp_path / "data", 8))
    with pytest.raises(SystemExit) as stop:
        main(["validate", str(config), f"--gpu={gpu}"])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"--gpu {gpu}: write the memory of a GPU" in line


@pytest.mark.parametrize("verb", [train, validate])
@pytest.mark.parametrize(("words", "warned"), [((200, 199), False), ((20, 300), True)])
def test_a_text_of_a_pair_is_compared_with_the_positions_of_the_model(
    tmp_path: Path,
    tiny_llama_dir: Path,
    make_jsonl: Callable[..., Path],
    said: Callable[[], str],
    verb: Callable[..., object],
    words: tuple[int, int],
    warned: bool,
) -> None:
    answers = dict(zip(("chosen", "rejected"), (" x" * count for count in words), strict=True))
    raw = {
        "model": {"model_name_or_path": str(tiny_llama_dir), "dtype": "float32"},
        "tasks": {"better": {"path": str(make_jsonl("pairs.jsonl", [{"prompt": "q", **answers}])), "kind": "orpo"}},
        "data": {"max_length": 1024, "val_size": 0, "num_proc": 1},
        "train": {"max_steps": 1, "report_to": []},
        "backend": {"device": "cpu"},
        "output_dir": str(tmp_path / "run"),
    }
    verb(parse_config(raw, origin="test"))
    text = said()
    assert ("is more than the 512 positions" in text) == warned, text
    assert ("tasks.better: a text of 6" in text) == warned, text


def run_of_kinds(model: Path, make_jsonl: Callable[..., Path], folder: Path, **fields: object) -> RunConfig:
    """A config with a task of each family of kinds."""
    pairs = make_jsonl("pairs.jsonl", [{"prompt": f"q{n}", "chosen": "yes", "rejected": "no"} for n in range(4)])
    labels = make_jsonl("kto.jsonl", [{"prompt": f"q{n}", "completion": f"a{n}", "label": True} for n in range(4)])
    raw = {
        "model": {"model_name_or_path": str(model), "dtype": "float32"},
        "tasks": {
            "chat": str(make_jsonl("chat.jsonl", [{"prompt": f"q{n}", "completion": "a"} for n in range(4)])),
            "code": {"path": str(make_jsonl("code.jsonl", [{"text": "x = 1"}])), "kind": "pretrain"},
            "better": {"path": str(pairs), "kind": "dpo"},
            "plain": {"path": str(pairs), "kind": "orpo"},
            "labels": {"path": str(labels), "kind": "kto"},
        },
        "data": {"max_length": 64, "val_size": 0, "num_proc": 1},
        "backend": {"device": "cpu"},
        "output_dir": str(folder / "run"),
        **fields,
    }
    return parse_config(raw, origin="test")


@pytest.mark.slow(reason="it plans the memory of a run")
def test_each_task_is_shown_with_its_kind_and_what_that_costs(
    tmp_path: Path,
    tiny_llama_dir: Path,
    make_jsonl: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    said: Callable[[], str],
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    validate(run_of_kinds(tiny_llama_dir, make_jsonl, tmp_path))
    out = capsys.readouterr().out
    by_task = {line.split(": ")[0].split()[-1]: line for line in out.splitlines() if ": " in line}
    assert by_task["chat"].rstrip().endswith("chat: sft")
    assert "pretrain, documents packed" in by_task["code"]
    assert "a reference by the model with its LoRA weights off, once: no second model" in by_task["better"]
    assert "for 4 records" in by_task["better"] and "forward pass" not in by_task["better"]
    assert "one more product with the head" in by_task["plain"] and "reference" not in by_task["plain"]
    assert "one more forward pass a step" in by_task["labels"] and "reference" in by_task["labels"]
    assert "tasks.labels: all 4 answers are desirable" in said()
    assert "the two texts of a pair share one run of their prompt" in by_task["better"]
    full = run_of_kinds(tiny_llama_dir, make_jsonl, tmp_path, adapter="full")
    assert "a reference by the model before its first step, once" in kind_lines(full, prepare(full), "cpu")[2]
    assert "each text runs its prompt" in kind_lines(full, prepare(full), "cuda")[2]


@pytest.mark.parametrize(
    "verb", [train, pytest.param(validate, marks=pytest.mark.slow(reason="it plans the memory of each kind of run"))]
)
def test_a_schedule_that_does_not_fit_is_refused(
    tmp_path: Path, tiny_llama_dir: Path, make_jsonl: Callable[..., Path], verb: Callable[..., object]
) -> None:
    schedule = {"max_steps": 5, "lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 4, "decay_steps": 2}
    config = run_of_kinds(tiny_llama_dir, make_jsonl, tmp_path, train={**schedule, "report_to": []})
    with pytest.raises(MftError, match=r"4 steps of warm-up and 2 of decay .* do not fit into the run's 5 steps"):
        verb(config)
