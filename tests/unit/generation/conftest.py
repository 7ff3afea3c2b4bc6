"""A tiny model as each engine of this process runs it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.models.loading.load import load_folder


@pytest.fixture(scope="module", params=["transformers", "openvino"])
def model(tiny_llama_dir: Path, request: pytest.FixtureRequest) -> Any:
    found = load_folder(tiny_llama_dir, dtype=torch.float32, attn_implementation="sdpa", device="cpu")
    if request.param == "transformers":
        return found
    pytest.importorskip("mftcoder.models.openvino_model")
    from mftcoder.models.openvino_model import OpenVinoModel

    return OpenVinoModel(found)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_dir: Path) -> Tokenizer:
    return load_tokenizer(str(tiny_llama_dir))
