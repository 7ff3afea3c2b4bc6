"""Which engine a server gets, and what is refused before a model is loaded. tests/integration/test_serve.py asks real servers."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` brings uvicorn")
pytest.importorskip("fastapi", reason="the extra `serve` brings fastapi")
pytest.importorskip("prometheus_client", reason="the extra `serve` brings prometheus-client")

from mftcoder.app.serving.serve import serve
from mftcoder.errors import ConfigError

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "flags of vLLM for another engine": (
        {"engine": "transformers", "engine_flags": ["--enforce-eager"]},
        "--enforce-eager: only vLLM has flags of its own",
    ),
    "an adapter over a compiled model": (
        {"engine": "openvino", "adapters": {"one": Path("x")}},
        "--adapter: OpenVINO runs one model|OpenVINO is not installed",
    ),
    "a compiled model in 8 bits": ({"engine": "openvino", "load": "8bit"}, "--load 8bit: OpenVINO|OpenVINO is not"),
    "a compiled model in bfloat16": (
        {"engine": "openvino", "dtype": "bfloat16"},
        "computes in float32|OpenVINO is not",
    ),
    "a compiled model on a GPU": ({"engine": "openvino", "device": "cuda"}, "computes on the CPU|OpenVINO is not"),
    "a GPU by number": ({"engine": "vllm", "device": "cuda:1"}, "CUDA_VISIBLE_DEVICES|vLLM is not installed"),
    "weights held in 4 bits": ({"engine": "vllm", "load": "4bit"}, "-- --quantization|vLLM is not installed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_engine_does_not_have_is_refused(tiny_llama_dir: Path, name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        serve(str(tiny_llama_dir), port=0, **options)


@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--no-such-flag"], "vLLM's flags: unrecognized arguments: --no-such-flag"),
        (["--max-model-len", "9", "--dtype", "half"], "--dtype: is set by --dtype; give that instead"),
        (["--dtype", "auto"], "--dtype: is set by --dtype"),  # its own default
        (["--max-loras", "4"], "--max-loras: is set by --adapter"),
        (["--tensor-parallel-size", "two"], "invalid"),
    ],
)
def test_flags_that_vllm_lacks_or_that_our_options_set_are_refused(flags: list[str], message: str) -> None:
    from mftcoder.app.serving.vllm_model import parse_flags

    with pytest.raises(ConfigError, match=message) as caught:
        parse_flags(flags)
    if "--max-model-len" in flags:
        assert "--max-model-len: is set by --cache-tokens" in str(caught.value.problems)


@pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM")
def test_an_adapter_of_a_rank_above_those_of_vllm_is_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 1024}))
    with pytest.raises(ConfigError, match="rank 1024 is above 512"):
        serve(str(tiny_llama_dir), port=0, engine="vllm", adapters={"one": tmp_path})
