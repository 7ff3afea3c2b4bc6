"""Which engine is chosen where engines are installed, with a GPU and without one."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mftcoder.app.scoring.engine_choice import engine_name
from mftcoder.errors import ConfigError
from mftcoder.models.export.source import find_source


def test_quantized_weights_go_to_the_engine_that_was_tried_with_them(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mftcoder.models.openvino_model")
    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "q"))
    config = json.loads((folder / "config.json").read_text())
    stored = {"quantization_config": {"quant_method": "compressed-tensors"}}
    (folder / "config.json").write_text(json.dumps(config | stored))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for device, whole in (("auto", "vllm"), ("cpu", "openvino")):
        chosen = [engine_name("auto", find_source(str(model)), device=device) for model in (tiny_llama_dir, folder)]
        assert chosen == [whole, "transformers"]


@pytest.mark.parametrize(
    ("config", "options", "name"),
    [
        ({}, {}, "openvino"),
        ({}, {"dtype": "float32"}, "openvino"),
        ({}, {"dtype": "bfloat16"}, "transformers"),
        ({}, {"as_trained": True}, "transformers"),
        ({"model_type": "mixtral"}, {}, "transformers"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}, {}, "transformers"),
    ],
)
def test_on_a_cpu_openvino_gets_what_it_was_tried_with(
    config: dict[str, Any],
    options: dict[str, Any],
    name: str,
    tiny_llama_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("mftcoder.models.openvino_model")
    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "m"))
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(known | config))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert engine_name("auto", find_source(str(folder)), device="auto", **options) == name


def test_another_version_of_openvino_is_left_alone(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_source(str(tiny_llama_dir))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "mftcoder.models.openvino_model", None)  # what it imports is not there
    assert engine_name("auto", source, device="cpu") == "transformers"
    with pytest.raises(ConfigError, match=r"--engine openvino: this version of OpenVINO does not fit .* pip install"):
        engine_name("openvino", source, device="cpu")
