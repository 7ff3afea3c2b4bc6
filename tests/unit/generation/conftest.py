"""A tiny model as each engine of this process runs it, whole and with a damaged token."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.models.loading.load import load_folder


@pytest.fixture(scope="module", params=["transformers", "openvino"])
def engine(request: pytest.FixtureRequest) -> str:
    if request.param == "openvino":
        pytest.importorskip("mftcoder.models.openvino_model")
    return str(request.param)


@pytest.fixture(scope="module")
def model(tiny_llama_dir: Path, engine: str) -> Any:
    return _model(tiny_llama_dir, engine)


@pytest.fixture(scope="module")
def damaged(tiny_llama_dir: Path, engine: str, tokenizer: Tokenizer) -> Any:
    """The model with NaN in the embedding of the last token of "中", which OpenVINO's probe does not read."""
    return _model(tiny_llama_dir, engine, tokenizer.encode("中")[-1])


def _model(folder: Path, engine: str, damaged_token: int | None = None) -> Any:
    found = load_folder(folder, dtype=torch.float32, attn_implementation="sdpa", device="cpu")
    if damaged_token is not None:
        found.get_input_embeddings().weight.data[damaged_token] = float("nan")
    if engine == "transformers":
        return found
    from mftcoder.models.openvino_model import OpenVinoModel

    return OpenVinoModel(found)


@pytest.fixture(scope="module")
def tokenizer(tiny_llama_dir: Path) -> Tokenizer:
    return load_tokenizer(str(tiny_llama_dir))
