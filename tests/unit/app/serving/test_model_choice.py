"""The weights that a user's model is served with."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from mftcoder.app.scoring import engine_choice
from mftcoder.app.serving.model_choice import load_model
from mftcoder.errors import GenerationError, ModelError
from mftcoder.kernels import limits
from mftcoder.models.export.source import find_source


def test_a_compiled_model_of_float16_weights_rounds_none_of_them(tiny_llama_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("mftcoder.models.openvino_model")
    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "halves"))
    AutoModelForCausalLM.from_pretrained(folder).to(torch.float16).save_pretrained(folder)
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        expected = whole(input_ids=torch.arange(4, 44)[None]).logits[0, -1]
    model = load_model(find_source(str(folder)), device="cpu", dtype=None, engine="openvino")
    found = model.cache(2).forward([list(range(4, 44))], [0], [[0, 1]])[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_weights_keep_the_dtype_that_a_config_names_as_transformers_did_or_does(
    key: str, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "named"))
    config = json.loads((folder / "config.json").read_text())
    config[key] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    assert find_source(str(folder)).dtype() == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_keep_the_dtype_of_their_files_where_the_config_names_none(
    dtype: torch.dtype, tiny_llama_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "unnamed"))
    tensors = {name: weight.to(dtype) for name, weight in load_file(folder / "model.safetensors").items()}
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.bfloat16)  # most numbers decide
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    assert find_source(str(folder)).dtype(float16=True) == dtype


def test_what_openvino_cannot_run_is_run_by_transformers_unless_openvino_was_named(
    untraceable_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mftcoder.models.openvino_model")
    monkeypatch.setattr(engine_choice, "OPENVINO_FAMILIES", {"gemma2"})
    source = find_source(str(untraceable_dir))
    with caplog.at_level(logging.INFO, "mftcoder"):
        model = load_model(source, device="cpu", dtype=None)
    assert "OpenVINO cannot run Gemma2ForCausalLM: " in caplog.text
    assert "does not support softcap" in caplog.text and "; the transformers engine takes its place" in caplog.text
    assert model(input_ids=torch.arange(4, 14)[None]).logits.isfinite().all()
    with pytest.raises(ModelError, match=r"OpenVINO cannot run Gemma2ForCausalLM: .* Use --engine transformers"):
        load_model(source, device="cpu", dtype=None, engine="openvino")


def test_a_damaged_model_goes_to_no_other_engine(tiny_llama_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("mftcoder.models.openvino_model")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    model.lm_head.weight.data[0, 0] = float("nan")
    model.save_pretrained(folder := Path(shutil.copytree(tiny_llama_dir, tmp_path / "damaged")))
    with pytest.raises(GenerationError, match=rf"{folder}: lm_head.weight is damaged"):
        load_model(find_source(str(folder)), device="cpu", dtype=None)


@pytest.mark.parametrize(
    ("flags", "dtype", "told"),
    [("avx2", "bfloat16", True), ("avx2", "float32", False), ("amx_bf16", "bfloat16", False)],
)
def test_emulated_bfloat16_is_told_with_the_faster_dtype(
    flags: str,
    dtype: str,
    told: bool,
    tiny_llama_dir: Path,
    said: Callable[[], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags}\n")
    monkeypatch.setattr(limits, "CPU_INFO", tmp_path / "cpuinfo")
    load_model(find_source(str(tiny_llama_dir)), device="cpu", dtype=dtype, engine="transformers")
    assert ("much slower than in float32. --dtype float32" in said()) == told
