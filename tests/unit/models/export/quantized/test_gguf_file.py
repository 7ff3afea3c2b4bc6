"""A model written as .gguf and read back computes the same, within the bits of its blocks; what a file cannot hold is refused.

The reader is this project's own, which is compared with llama.cpp's layouts in tests/unit/models/conversion/test_gguf_architectures.py.
"""

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from mftcoder.errors import ModelError
from mftcoder.models.conversion.gguf import convert_file
from mftcoder.models.export.quantized.gguf_file import find_program, write_gguf
from mftcoder.models.loading.load import load_folder

COMMON = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "vocab_size": 1008, "bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 1,
    "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "tie_word_embeddings": True}
LLAMA_3_1 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
SHORT, LONG = [1.0 + 0.1 * index for index in range(8)], [2.0 + 0.2 * index for index in range(8)]
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": SHORT,
    "long_factor": LONG,
    "original_max_position_embeddings": 128,
}
GPT2 = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "n_inner": 96,
    "vocab_size": 1008,
    "eos_token_id": 3,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases and wide heads": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    "llama yarn": ("llama", {"rope_scaling": YARN}),
    "llama 3.1": ("llama", {"head_dim": 32, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, **LLAMA_3_1}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen2": ("qwen2", {"rope_theta": 1e6}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen2_moe": ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "starcoder2": ("starcoder2", {"sliding_window": None, "rope_theta": 3e5}),
    "phi3": ("phi3", {"sliding_window": 8}),
    "phi3 longrope": ("phi3", {"rope_scaling": LONGROPE, "original_max_position_embeddings": 128, "sliding_window": None}),
    "gemma": ("gemma", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", {**GEMMA, "num_hidden_layers": 7}),
    "gpt2": ("gpt2", GPT2),
}  # fmt: skip


def model_folder(folder: Path, tokenizer: Path, case: str, dtype: torch.dtype = torch.float32, **changed: Any) -> Path:
    """A random model in which every weight matters, also norms and biases."""
    model_type, own = MODELS[case]
    values = {**({} if model_type == "gpt2" else COMMON), **own, **changed}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name or "ln_" in name else 0.2))
    model.to(dtype).save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    return folder


def read_back(file: Path, out: Path) -> Any:
    out.mkdir()
    convert_file(file, out)
    return load_folder(out, dtype=torch.float32, device="cpu")


def logits(model: Any) -> Tensor:
    ids = torch.randint(3, 1000, (1, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("case", MODELS)
def test_each_family_written_in_float32_and_read_back_computes_the_same(
    tmp_path: Path, tiny_tokenizer_dir: Path, case: str
) -> None:
    folder = model_folder(tmp_path / "model", tiny_tokenizer_dir, case)
    write_gguf(folder, tmp_path / "m.gguf", "F32")
    expected = logits(load_folder(folder, dtype=torch.float32, device="cpu"))
    assert expected.std() > 0.1
    torch.testing.assert_close(
        logits(read_back(tmp_path / "m.gguf", tmp_path / "read")), expected, atol=2e-5, rtol=1e-4
    )


def test_the_scaled_cases_differ_from_the_unscaled_model(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    """Otherwise a lost scaling would pass the test above."""
    plain = model_folder(tmp_path / "plain", tiny_tokenizer_dir, "llama")
    unscaled = logits(load_folder(plain, dtype=torch.float32, device="cpu"))
    for number, case in enumerate(("llama linear", "llama yarn")):
        folder = model_folder(tmp_path / str(number), tiny_tokenizer_dir, case)
        assert (logits(load_folder(folder, dtype=torch.float32, device="cpu")) - unscaled).abs().max() > 0.05


STEPS = {"F16": 2**12, "BF16": 2**8, "Q8_0": 250, "Q5_1": 31, "Q5_0": 30, "Q4_1": 15, "Q4_0": 14}
"""Into how many steps a type divides the range of a block, of which it loses half a one; the plain types divide each value."""


@pytest.mark.parametrize("kind", STEPS)
def test_blocks_change_the_weights_by_no_more_than_their_bits(
    tmp_path: Path, tiny_tokenizer_dir: Path, kind: str
) -> None:
    folder = model_folder(tmp_path / "model", tiny_tokenizer_dir, "llama")
    write_gguf(folder, tmp_path / "m.gguf", kind)
    original = load_folder(folder, dtype=torch.float32, device="cpu")
    loaded = read_back(tmp_path / "m.gguf", tmp_path / "read")
    for (name, weight), found in zip(original.named_parameters(), loaded.parameters(), strict=True):
        if weight.ndim == 1:
            torch.testing.assert_close(found, weight, msg=name)
            continue
        widest = 2 * weight.reshape(-1, 32).abs().amax(dim=1, keepdim=True).expand(-1, 32).reshape(weight.shape)
        steps = STEPS["Q8_0"] if name == "lm_head.weight" and kind.startswith("Q") else STEPS[kind]
        assert ((found - weight).abs() <= widest / steps + 0.01 * weight.abs()).all(), name
        assert found.ne(weight).any(), name
    both = torch.stack([logits(original).flatten(), logits(loaded).flatten()])
    assert both.corrcoef()[0, 1] > {"F16": 0.9999, "BF16": 0.999, "Q8_0": 0.999}.get(kind, 0.8)


def test_vectors_routers_and_the_head_keep_more_bits(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    write_gguf(model_folder(tmp_path / "moe", tiny_tokenizer_dir, "qwen3_moe"), tmp_path / "moe.gguf", "Q4_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "moe.gguf").tensors}
    assert {name for name, kind in types.items() if kind == "F32"} == {
        "output_norm.weight",
        *(f"blk.{n}.{key}.weight" for n in (0, 1) for key in ("attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm", "ffn_gate_inp")),
    }  # fmt: skip
    assert {name for name, kind in types.items() if kind == "Q8_0"} == {"output.weight"}
    assert types["blk.0.ffn_up_exps.weight"] == types["token_embd.weight"] == "Q4_0"
    write_gguf(model_folder(tmp_path / "tied", tiny_tokenizer_dir, "llama, tied"), tmp_path / "tied.gguf", "Q4_0")
    tied = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "tied.gguf").tensors}
    assert tied["token_embd.weight"] == "Q8_0"
    assert "output.weight" not in tied


def test_queries_and_keys_of_llama_lie_in_the_order_of_llama_cpp(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    """Row 2i of a head is its row i, and row 2i + 1 its row i + size / 2: the pairs that llama.cpp turns together."""
    folder = model_folder(tmp_path / "model", tiny_tokenizer_dir, "llama")
    write_gguf(folder, tmp_path / "m.gguf", "F32")
    held = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    layer = load_folder(folder, dtype=torch.float32, device="cpu").model.layers[0].self_attn
    keys = layer.k_proj.weight.detach().numpy().reshape(2, 16, 64)  # heads, rows, columns
    np.testing.assert_array_equal(held["blk.0.attn_k.weight"].reshape(2, 8, 2, 64)[1, 3, 1], keys[1, 3 + 8])
    np.testing.assert_array_equal(held["blk.0.attn_v.weight"], layer.v_proj.weight.detach())


def test_a_window_that_a_file_cannot_hold_shortens_the_context_and_is_told(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    folder = model_folder(tmp_path / "model", tiny_tokenizer_dir, "mistral", sliding_window=100)
    (note,) = write_gguf(folder, tmp_path / "m.gguf", "F32")
    assert "a context of 100 tokens" in note
    assert read_back(tmp_path / "m.gguf", tmp_path / "read").config.max_position_embeddings == 100


REFUSED = {
    "another activation": ("llama", {"hidden_act": "gelu"}, "Q8_0", r"does not hold its hidden_act \(gelu\)"),
    "a scaling without a key": (
        "llama",
        {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
        "Q8_0",
        "does not hold its rope_parameters",
    ),
    "routing that files do not hold": ("qwen3_moe", {"norm_topk_prob": False}, "Q8_0", r"does not hold its norm_topk_prob \(False\)"),
    "rows that no blocks fill": (
        "llama", {"intermediate_size": 100}, "Q4_0", r"ffn_down.weight has 100 columns, and Q4_0 holds blocks of 32 \(2 such tensors\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_a_file_cannot_hold_is_refused(tmp_path: Path, tiny_tokenizer_dir: Path, case: str) -> None:
    name, changed, kind, message = REFUSED[case]
    folder = model_folder(tmp_path / "model", tiny_tokenizer_dir, name, **changed)
    with pytest.raises(ModelError, match=message):
        write_gguf(folder, tmp_path / "m.gguf", kind)


def test_an_unknown_family_and_broken_weights_are_refused(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    folder = model_folder(tmp_path / "model", tiny_tokenizer_dir, "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    for value, message in ((1e30, "too large for F16"), (float("nan"), "that are not finite")):
        model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
        model.save_pretrained(folder)
        with pytest.raises(ModelError, match=f"blk.1.ffn_up.weight holds values {message}"):
            write_gguf(folder, tmp_path / "m.gguf", "F16")
    config = AutoConfig.for_model(
        "gpt_neox", hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=1008
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "neox")
    shutil.copytree(tiny_tokenizer_dir, tmp_path / "neox", dirs_exist_ok=True)
    with pytest.raises(ModelError, match=r"model type 'gpt_neox' cannot be written as .gguf \(known: llama, mistral"):
        write_gguf(tmp_path / "neox", tmp_path / "m.gguf", "F16")


def test_without_llama_cpp_its_types_are_refused_with_the_others_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ModelError, match=r"gguf:Q4_K_M: .* llama-quantize is not on the PATH.* choose one of gguf:F32"):
        find_program(None, "Q4_K_M")
    with pytest.raises(ModelError, match="/no/such is not a program"):
        find_program("/no/such", "Q4_K_M")


def test_a_quantizer_that_fails_is_quoted_and_leaves_nothing(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    program = tmp_path / "llama-quantize"
    program.write_text("#!/bin/sh\necho 'no such type: '$3 >&2\nexit 3\n")
    program.chmod(0o755)
    folder = model_folder(tmp_path / "model", tiny_tokenizer_dir, "llama")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"failed \(exit code 3\): no such type: Q4_K_M"):
        write_gguf(folder, tmp_path / "out" / "m.gguf", "Q4_K_M", program=program)
    assert not list((tmp_path / "out").iterdir())
