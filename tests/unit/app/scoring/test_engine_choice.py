"""Which engine is chosen where vLLM is installed and there is a GPU."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from mftcoder.app.scoring.engine_choice import engine_name
from mftcoder.models.export.source import find_source


def test_quantized_weights_go_to_the_engine_that_was_tried_with_them(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "q"))
    config = json.loads((folder / "config.json").read_text())
    stored = {"quantization_config": {"quant_method": "compressed-tensors"}}
    (folder / "config.json").write_text(json.dumps(config | stored))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen = [
        engine_name("auto", find_source(str(model)), device="auto", as_trained=False)
        for model in (tiny_llama_dir, folder)
    ]
    assert chosen == ["vllm", "transformers"]
