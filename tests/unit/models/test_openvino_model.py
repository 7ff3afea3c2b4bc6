"""A model that OpenVINO has compiled says what transformers says in float32, for each family, or is refused."""

import copy
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Starcoder2Config,
)

from mftcoder.app.scoring.engine_choice import OPENVINO_FAMILIES
from mftcoder.errors import GenerationError, ModelError

pytest.importorskip("mftcoder.models.openvino_model")

from mftcoder.models.openvino_model import BLOCK, OpenVinoModel

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama, scaled rope": LlamaConfig(
        **SIZES, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    ),
    "mistral, window": MistralConfig(**SIZES, sliding_window=16),
    "qwen2, tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "starcoder2, window": Starcoder2Config(**SIZES, sliding_window=24),
    "gemma": GemmaConfig(**SIZES, head_dim=32),
    "gemma3, windows and whole": Gemma3TextConfig(
        **SIZES,
        head_dim=32,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "gpt2": GPT2Config(vocab_size=300, n_embd=64, n_layer=2, n_head=4, n_positions=512),
    "gpt_neox": GPTNeoXConfig(**{**SIZES, "num_key_value_heads": 4}),
    "phi3": Phi3Config(**SIZES),
    "granite": GraniteConfig(**SIZES, logits_scaling=2.0, embedding_multiplier=3.0, attention_multiplier=0.1),
}
REFUSED: dict[str, tuple[PretrainedConfig, str]] = {
    "softcap": (Gemma2Config(**SIZES, head_dim=32, attn_logit_softcapping=20.0), "does not support softcap"),
    "experts": (MixtralConfig(**SIZES, num_local_experts=4), "a mixture of experts chooses them while it runs"),
    "dynamic rope": (
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}),
        "rotary positions of type dynamic depend on the length of the text",
    ),
    "state space": (
        FalconH1Config(**SIZES, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16),
        "it is more than attention",
    ),
}


def model_of(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    for weight in model.parameters():  # random biases and norms too, and products that matter
        weight.data += torch.randn_like(weight) * 0.1
    return model.to(dtype).eval()


@torch.no_grad()
def last_logits(model: Any, text: Sequence[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([list(text)]), use_cache=False).logits[0, -1]
    return logits


def texts_of(*lengths: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(300, (length,), generator=draw).tolist() for length in lengths]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_any_lengths_in_parts_over_scattered_blocks_give_the_models_logits(family: str) -> None:
    texts = texts_of(1, 31, 32, 33, 150)
    expected = torch.stack([last_logits(model_of(FAMILIES[family]), text) for text in texts])
    cache = OpenVinoModel(model_of(FAMILIES[family])).cache(24)
    blocks = iter([7, 3, 11, 0, 23, 5, 2, 19, 13, 1, 17, 4, 22, 9])
    tables = [[next(blocks) for _ in range(-(-len(text) // BLOCK))] for text in texts]
    whole = cache.forward(texts, [0] * 5, tables).clone()
    past = [0, 20, 31, 32, 97]
    starts = [text[:before] for text, before in zip(texts, past, strict=True)]
    cache.forward(starts[1:], [0] * 4, tables[1:])
    rests = [text[before:] for text, before in zip(texts, past, strict=True)]
    parts = cache.forward(rests[::-1], past[::-1], tables[::-1]).flip(0)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2, tied", "gpt2", "gemma3, windows and whole"])
def test_weights_of_16_bits_are_computed_with_in_float32(family: str) -> None:
    rounded = model_of(FAMILIES[family], torch.bfloat16)
    expected = last_logits(copy.deepcopy(rounded).float(), texts_of(60)[0])
    found = OpenVinoModel(rounded).cache(2).forward(texts_of(60), [0], [[0, 1]])[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_give_other_texts_is_refused(kind: str) -> None:
    config, words = REFUSED[kind]
    with pytest.raises(ModelError, match=words):
        OpenVinoModel(model_of(config))


class UnknownOperation(torch.nn.Module):
    """Makes a product that OpenVINO has no operation for."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        return self.inner(states) * torch.special.bessel_j0(states)


def test_an_error_is_what_is_wrong_without_openvinos_advice_and_places() -> None:
    with pytest.raises(ModelError) as capped:
        OpenVinoModel(model_of(REFUSED["softcap"][0]))
    model = model_of(FAMILIES["llama"])
    model.model.layers[1].mlp = UnknownOperation(model.model.layers[1].mlp)
    with pytest.raises(ModelError) as unknown:
        OpenVinoModel(model)
    assert str(capped.value) == "OpenVINO cannot run Gemma2ForCausalLM: packed attention does not support softcap"
    assert str(unknown.value) == (
        "OpenVINO cannot run LlamaForCausalLM: Model wasn't fully converted. -- No conversion rule found for operations: "
        "aten::special_bessel_j0"
    )


def test_damaged_weights_are_named() -> None:
    model = model_of(FAMILIES["llama"])
    model.model.layers[1].mlp.down_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(GenerationError, match=r"LlamaForCausalLM: model.layers.1.mlp.down_proj.weight is damaged"):
        OpenVinoModel(model)


def test_logits_that_only_the_models_own_dtype_cannot_hold_leave_the_model_to_another_engine() -> None:
    model = model_of(FAMILIES["llama"], torch.float16)
    model.lm_head.weight.data.fill_(6e4)
    with pytest.raises(ModelError, match=r"its logits are not finite numbers in torch.float16"):
        OpenVinoModel(model)


def test_auto_takes_openvino_for_these_families() -> None:
    assert {config.model_type for config in FAMILIES.values()} == OPENVINO_FAMILIES


def test_a_compiled_model_that_says_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mftcoder.models import openvino_model

    convert = openvino_model._convert

    def without_rope(model: Any) -> Any:
        model.model.rotary_emb.inv_freq.zero_()
        return convert(model)

    monkeypatch.setattr(openvino_model, "_convert", without_rope)
    with pytest.raises(ModelError, match="says something else when it is compiled"):
        OpenVinoModel(model_of(FAMILIES["llama"]))


def test_compiling_prints_nothing_and_tells_nobody(tmp_path: Path, tiny_llama_dir: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "CI": "", "TF_BUILD": ""}  # it tells nothing in CI
    environment.pop("JENKINS_URL", None)
    script = f"""
import sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tiny_llama_dir)!r})
print("loaded", file=sys.stderr)
from mftcoder.models.openvino_model import OpenVinoModel
OpenVinoModel(model)
print([name for name in sys.modules if name.startswith("openvino_telemetry.")])
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr.rpartition("loaded\n")[2]) == ("[]\n", "")
    assert not (tmp_path / "intel").exists()
