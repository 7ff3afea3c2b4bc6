"""Converted checkpoints compute the original function, which is written here in plain torch, on random weights."""

import base64
import itertools
import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from mftcoder.config.schema import ModelConfig
from mftcoder.data.tokenizers.qwen import PATTERN, write_tokenizer
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import ModelError
from mftcoder.models.conversion.convert import write_native
from mftcoder.models.conversion.recipes import Recipe
from mftcoder.models.files.weights import StoredTensor
from mftcoder.models.loading.load import load_folder, load_model
from mftcoder.models.loading.resolve import local_folder, resolve_model

HIDDEN, HEADS, SIZE, LAYERS, INNER, VOCABULARY, LENGTH = 32, 4, 8, 2, 24, 96, 20
IDS = torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(3))
Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MFTCODER_CACHE", str(tmp_path / "cache"))


def random_weights(shapes: dict[str, tuple[int, ...]]) -> Weights:
    generator = torch.Generator().manual_seed(0)
    return {
        name: 1 + 0.1 * torch.randn(shape, generator=generator) if "norm" in name or "ln_" in name
        else 0.2 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }  # fmt: skip


def write_folder(folder: Path, config: dict[str, Any], weights: Weights, code: str = "") -> Path:
    """A checkpoint in the original layout; `code` is the text of its modeling file, none if empty."""
    folder.mkdir(parents=True)
    if code:
        (folder / f"modeling_{config['model_type']}.py").write_text(code)
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "modeling.X"}}))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, T, heads, size] each; key-value heads repeated to the query heads."""
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:]).triu(1).bool()
    weights = scores.masked_fill(later, float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)


def rotate_halves(x: Tensor, base: float) -> Tensor:
    """Pairs (i, i + size/2) turned by position * base^(-2i/size)."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None] * base ** (-torch.arange(half) / half)  # [T, half]
    turn = torch.polar(torch.ones_like(angles), angles)[None, :, None]
    turned = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([turned.real, turned.imag], dim=-1)


def rotate_neighbours(x: Tensor, base: float, ratio: float = 1) -> Tensor:
    """Pairs (2i, 2i + 1) of the first half of the head turned by position / ratio * base^(-2i/(size/2)); the rest stays."""
    half = x.shape[-1] // 2
    pairs = torch.view_as_complex(x[..., :half].reshape(*x.shape[:-1], half // 2, 2).contiguous())
    angles = torch.arange(x.shape[1])[:, None] / ratio * base ** (-torch.arange(half // 2) / (half // 2))
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]).flatten(-2)
    return torch.cat([turned, x[..., half:]], dim=-1)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, SIZE))


QWEN = {
    "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "intermediate_size": 2 * INNER, "kv_channels": SIZE, "seq_length": 64, "rotary_emb_base": 500,
    "rotary_pct": 1.0, "layer_norm_epsilon": 1e-5, "no_bias": True, "tie_word_embeddings": False, "use_logn_attn": True, "use_dynamic_ntk": True,
}  # fmt: skip


def qwen_weights() -> Weights:
    shapes = {
        "transformer.wte.weight": (VOCABULARY, HIDDEN),
        "lm_head.weight": (VOCABULARY, HIDDEN),
        "transformer.ln_f.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        prefix = f"transformer.h.{layer}"
        shapes |= {
            f"{prefix}.ln_1.weight": (HIDDEN,), f"{prefix}.ln_2.weight": (HIDDEN,),
            f"{prefix}.attn.c_attn.weight": (3 * HIDDEN, HIDDEN), f"{prefix}.attn.c_attn.bias": (3 * HIDDEN,),
            f"{prefix}.attn.c_proj.weight": (HIDDEN, HIDDEN), f"{prefix}.mlp.w1.weight": (INNER, HIDDEN),
            f"{prefix}.mlp.w2.weight": (INNER, HIDDEN), f"{prefix}.mlp.c_proj.weight": (HIDDEN, INNER),
        }  # fmt: skip
    return {**random_weights(shapes), "transformer.rotary_emb.inv_freq": torch.ones(4)}


def qwen(w: Weights, ids: Tensor) -> Tensor:
    x = w["transformer.wte.weight"][ids]
    for layer in range(LAYERS):
        p = {name.removeprefix(f"transformer.h.{layer}."): tensor for name, tensor in w.items()}
        normed = rms_norm(x, p["ln_1.weight"], 1e-5)
        q, k, v = map(heads, F.linear(normed, p["attn.c_attn.weight"], p["attn.c_attn.bias"]).chunk(3, -1))
        x = x + causal_attention(rotate_halves(q, 500), rotate_halves(k, 500), v) @ p["attn.c_proj.weight"].T
        normed = rms_norm(x, p["ln_2.weight"], 1e-5)
        x = x + ((normed @ p["mlp.w1.weight"].T) * F.silu(normed @ p["mlp.w2.weight"].T)) @ p["mlp.c_proj.weight"].T
    return rms_norm(x, w["transformer.ln_f.weight"], 1e-5) @ w["lm_head.weight"].T


BAICHUAN = {
    "model_type": "baichuan", "architectures": ["BaichuanForCausalLM"], "vocab_size": 125696, "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "hidden_act": "silu", "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


def llama_like(vocabulary: int, attention: dict[str, tuple[int, ...]]) -> Weights:
    shapes = {
        "model.embed_tokens.weight": (vocabulary, HIDDEN),
        "lm_head.weight": (vocabulary, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,), f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}.self_attn.o_proj.weight": (HIDDEN, HIDDEN), f"{prefix}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{prefix}.mlp.up_proj.weight": (INNER, HIDDEN), f"{prefix}.mlp.down_proj.weight": (HIDDEN, INNER),
        }  # fmt: skip
    return random_weights(shapes)


def llama(
    w: Weights, ids: Tensor, projections: Callable[[Weights, Tensor], list[Tensor]], head: Tensor, base: float
) -> Tensor:
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(LAYERS):
        p = {name.removeprefix(f"model.layers.{layer}."): tensor for name, tensor in w.items()}
        q, k, v = map(heads, projections(p, rms_norm(x, p["input_layernorm.weight"], 1e-5)))
        x = x + causal_attention(rotate_halves(q, base), rotate_halves(k, base), v) @ p["self_attn.o_proj.weight"].T
        normed = rms_norm(x, p["post_attention_layernorm.weight"], 1e-5)
        inner = F.silu(normed @ p["mlp.gate_proj.weight"].T) * (normed @ p["mlp.up_proj.weight"].T)
        x = x + inner @ p["mlp.down_proj.weight"].T
    return rms_norm(x, w["model.norm.weight"], 1e-5) @ head.T


def baichuan_weights(vocabulary: int = 125696) -> Weights:
    return llama_like(vocabulary, {"W_pack": (3 * HIDDEN, HIDDEN)})


def small_baichuan_weights() -> Weights:
    return baichuan_weights(VOCABULARY)


def packed_llama(w: Weights, ids: Tensor, head: Tensor) -> Tensor:
    return llama(w, ids, lambda p, x: list((x @ p["self_attn.W_pack.weight"].T).chunk(3, -1)), head, 10000)


def baichuan(w: Weights, ids: Tensor) -> Tensor:
    return packed_llama(w, ids, w["lm_head.weight"])


def baichuan2(w: Weights, ids: Tensor) -> Tensor:
    return packed_llama(w, ids, w["lm_head.weight"] / w["lm_head.weight"].norm(dim=1, keepdim=True))


AQUILA = {
    "model_type": "aquila", "architectures": ["AquilaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
    "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 2, "hidden_act": "silu",
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 500.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def aquila_weights() -> Weights:
    return llama_like(
        VOCABULARY, {"q_proj": (HIDDEN, HIDDEN), "k_proj": (2 * SIZE, HIDDEN), "v_proj": (2 * SIZE, HIDDEN)}
    )


def aquila(w: Weights, ids: Tensor) -> Tensor:
    return llama(w, ids, lambda p, x: [x @ p[f"self_attn.{n}_proj.weight"].T for n in "qkv"], w["lm_head.weight"], 500)


CHATGLM = {
    "model_type": "chatglm", "architectures": ["ChatGLMModel"], "padded_vocab_size": VOCABULARY, "hidden_size": HIDDEN, "ffn_hidden_size": INNER,
    "num_layers": LAYERS, "num_attention_heads": HEADS, "kv_channels": SIZE, "multi_query_attention": True, "multi_query_group_num": 2,
    "seq_length": 64, "layernorm_epsilon": 1e-5, "rmsnorm": True, "add_bias_linear": False, "add_qkv_bias": True, "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False, "rope_ratio": 3, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip


def chatglm_weights(groups: int = 2) -> Weights:
    encoder, projected = "transformer.encoder", (HEADS + 2 * groups) * SIZE
    shapes = {
        "transformer.embedding.word_embeddings.weight": (VOCABULARY, HIDDEN),
        "transformer.output_layer.weight": (VOCABULARY, HIDDEN),
        f"{encoder}.final_layernorm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        prefix = f"{encoder}.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (HIDDEN,), f"{prefix}.post_attention_layernorm.weight": (HIDDEN,),
            f"{prefix}.self_attention.query_key_value.weight": (projected, HIDDEN),
            f"{prefix}.self_attention.query_key_value.bias": (projected,),
            f"{prefix}.self_attention.dense.weight": (HIDDEN, HIDDEN),
            f"{prefix}.mlp.dense_h_to_4h.weight": (2 * INNER, HIDDEN), f"{prefix}.mlp.dense_4h_to_h.weight": (HIDDEN, INNER),
        }  # fmt: skip
    return {**random_weights(shapes), "transformer.rotary_pos_emb.inv_freq": torch.ones(2)}


def grouped(joined: Tensor) -> list[Tensor]:
    """multi_query_attention: all queries, then two groups of keys, then two of values."""
    return [heads(part) for part in joined.split([HEADS * SIZE, 2 * SIZE, 2 * SIZE], -1)]


def head_by_head(joined: Tensor) -> list[Tensor]:
    """Without groups: query, key and value of the first head, then of the second."""
    return list(joined.unflatten(-1, (HEADS, 3 * SIZE)).chunk(3, -1))


def chatglm(
    w: Weights,
    ids: Tensor,
    *,
    base: float = 10000,
    ratio: float = 1,
    cut: Callable[[Tensor], list[Tensor]] = grouped,
) -> Tensor:
    x = w["transformer.embedding.word_embeddings.weight"][ids]
    for layer in range(LAYERS):
        p = {name.removeprefix(f"transformer.encoder.layers.{layer}."): tensor for name, tensor in w.items()}
        qkv = "self_attention.query_key_value"
        q, k, v = cut(F.linear(rms_norm(x, p["input_layernorm.weight"], 1e-5), p[f"{qkv}.weight"], p[f"{qkv}.bias"]))
        attended = causal_attention(rotate_neighbours(q, base, ratio), rotate_neighbours(k, base, ratio), v)
        x = x + attended @ p["self_attention.dense.weight"].T
        a, b = (rms_norm(x, p["post_attention_layernorm.weight"], 1e-5) @ p["mlp.dense_h_to_4h.weight"].T).chunk(2, -1)
        x = x + (F.silu(a) * b) @ p["mlp.dense_4h_to_h.weight"].T
    normed = rms_norm(x, w["transformer.encoder.final_layernorm.weight"], 1e-5)
    return normed @ w["transformer.output_layer.weight"].T


Formula = Callable[[Weights, Tensor], Tensor]
DIVIDES = "positions = torch.arange(length) / self.rope_ratio"
MULTIPLIES = "base = self.base * 1\nbase *= self.rope_ratio"
NORMALISED, PLAIN = "self.lm_head = NormHead(hidden, vocabulary)", "self.lm_head = nn.Linear(hidden, vocabulary)"
UNGROUPED = CHATGLM | {"multi_query_attention": False, "rope_ratio": 1}
SMALL = BAICHUAN | {"vocab_size": VOCABULARY}
CASES: dict[
    str, tuple[dict[str, Any], Weights, Formula, str]
] = {  # config, weights, function, text of the modeling file
    "qwen": (QWEN, qwen_weights(), qwen, ""),
    "baichuan": (SMALL | {"architectures": ["BaiChuanForCausalLM"]}, small_baichuan_weights(), baichuan, ""),
    "baichuan by its code": (SMALL, small_baichuan_weights(), baichuan, PLAIN),
    "baichuan2": (BAICHUAN, baichuan_weights(), baichuan2, ""),
    "baichuan2 with other tokens": (SMALL, small_baichuan_weights(), baichuan2, ""),
    "baichuan2 by its code": (SMALL | {"architectures": ["Tuned"]}, small_baichuan_weights(), baichuan2, NORMALISED),
    "chatglm2": (CHATGLM | {"rope_ratio": 1}, chatglm_weights(), chatglm, ""),
    "chatglm2-32k": (CHATGLM, chatglm_weights(), partial(chatglm, ratio=3), DIVIDES),
    "chatglm3-32k": (CHATGLM, chatglm_weights(), partial(chatglm, base=30000), MULTIPLIES),
    "chatglm without groups": (UNGROUPED, chatglm_weights(HEADS), partial(chatglm, cut=head_by_head), ""),
    "aquila2": (AQUILA, aquila_weights(), aquila, ""),
}
ARCHITECTURES = {"qwen": "Qwen2", "baichuan": "Llama", "chatglm": "Glm", "aquila": "Llama"}


@pytest.mark.parametrize("case", CASES)
def test_the_native_model_computes_the_original_function(tmp_path: Path, case: str) -> None:
    config, weights, formula, code = CASES[case]
    native = local_folder(str(write_folder(tmp_path / "original", config, weights, code)), weights=True)
    model = load_folder(native, dtype=torch.float32, device="cpu")
    assert type(model).__name__ == f"{ARCHITECTURES[config['model_type']]}ForCausalLM"
    with torch.no_grad():
        logits = model(IDS).logits
    expected = formula(weights, IDS)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_it_is_converted_once(tmp_path: Path) -> None:
    original = str(write_folder(tmp_path / "original", AQUILA, aquila_weights()))
    first = local_folder(original, weights=False)
    made = (first / "config.json").stat().st_mtime_ns
    assert local_folder(original, weights=True) == first
    assert (first / "config.json").stat().st_mtime_ns == made


def test_two_checkpoints_with_equal_sizes_and_times_keep_their_own_weights(tmp_path: Path) -> None:
    """Two checkpoints of one run, copied with their times; also one that replaces the other."""
    weights = aquila_weights()
    other = {name: tensor + 1 for name, tensor in weights.items()}
    folders = [write_folder(tmp_path / name, AQUILA, held) for name, held in (("a", weights), ("b", other))]
    for folder in folders:
        for path in folder.iterdir():
            os.utime(path, (1_700_000_000, 1_700_000_000))
    natives = [local_folder(str(folder), weights=True) for folder in folders]
    moved = shutil.move(folders[1], shutil.move(folders[0], tmp_path / "kept").with_name("a"))
    natives.append(local_folder(str(moved), weights=True))
    norms = [load_file(next(native.glob("*.safetensors")))["model.norm.weight"] for native in natives]
    assert torch.equal(norms[0], weights["model.norm.weight"])
    assert torch.equal(norms[1], other["model.norm.weight"])
    assert natives[2] == natives[1]


def test_the_generation_config_is_copied(tmp_path: Path) -> None:
    original = write_folder(tmp_path / "original", AQUILA, aquila_weights())
    (original / "generation_config.json").write_text('{"eos_token_id": [2, 7], "temperature": 0.3, "do_sample": true}')
    native = local_folder(str(original), weights=True)
    assert json.loads((native / "generation_config.json").read_text())["eos_token_id"] == [2, 7]


BROKEN: dict[str, tuple[str, Callable[[dict[str, Any], Weights], object]]] = {
    "a weight is missing": (
        "its files lack 4 of the model's weights: model.layers.1.post_attention_layernorm.weight, model.layers.1.self_attn.k",
        lambda config, weights: (weights.pop("transformer.h.1.attn.c_attn.bias"), weights.pop("transformer.h.1.ln_2.weight")),
    ),
    "a weight has another shape": (
        "model.norm.weight is 31 in the files, but 32 by config.json",
        lambda config, weights: weights.update({"transformer.ln_f.weight": torch.ones(31)}),
    ),
    "a weight cannot be cut": (
        r"c_attn.weight is 2 x 32, which does not fit",
        lambda config, weights: weights.update({"transformer.h.0.attn.c_attn.weight": torch.ones(2, 32)}),
    ),
    "a key is missing": ("config.json: has no 'hidden_size', which a qwen model needs", lambda config, weights: config.pop("hidden_size")),
    "a key is no number": ("has a value of the wrong kind", lambda config, weights: config.update(intermediate_size="48")),
    "the keys contradict each other": ("no model can be made", lambda config, weights: config.update(num_attention_heads=0)),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_original_is_refused_in_one_line_and_leaves_nothing_in_the_cache(tmp_path: Path, case: str) -> None:
    message, break_it = BROKEN[case]
    config, weights = dict(QWEN), qwen_weights()
    break_it(config, weights)
    original = write_folder(tmp_path / "original", config, weights)
    with pytest.raises(ModelError, match=message) as caught:
        local_folder(str(original), weights=True)
    assert all("\n" not in problem for problem in caught.value.problems)
    assert not list((tmp_path / "cache" / "models").glob("*"))


def test_pickled_weights_are_converted_only_when_asked_for(tmp_path: Path) -> None:
    weights = aquila_weights()
    original = write_folder(tmp_path / "original", AQUILA, weights)
    (original / "model.safetensors").unlink()
    torch.save(weights, original / "pytorch_model.bin")
    with pytest.raises(ModelError, match="only pickled weights"):
        local_folder(str(original), weights=True)
    native = local_folder(str(original), weights=True, pickled=True)
    assert list(native.glob("*.safetensors"))


REFUSED = {
    "ALiBi": {key: value for key, value in BAICHUAN.items() if key != "max_position_embeddings"},
    "positions of the first ChatGLM have two dimensions": {"model_type": "chatglm", "position_encoding_2d": True},
    "biases in its feed-forward layers": {**QWEN, "no_bias": False},
    "LayerNorm instead of RMSNorm": {**CHATGLM, "rmsnorm": False},
    "divides positions in ChatGLM2 and multiplies the rotary base in ChatGLM3": CHATGLM,
    "its rope_ratio is nan": {**CHATGLM, "rope_ratio": float("nan")},
    "does not say whether this is Baichuan or Baichuan2": {**BAICHUAN, "architectures": None},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_an_inexact_conversion_is_refused_with_the_reason(tmp_path: Path, reason: str) -> None:
    original = write_folder(tmp_path / "original", REFUSED[reason], {"x": torch.zeros(1)})
    with pytest.raises(ModelError, match=reason):
        local_folder(str(original), weights=True)


@pytest.mark.parametrize("group", [True, False])
def test_a_number_of_heads_that_is_a_text_is_one_line(tmp_path: Path, group: bool) -> None:
    config = CHATGLM | {"num_attention_heads": "4", "multi_query_attention": group, "rope_ratio": 1}
    original = write_folder(tmp_path / "original", config, chatglm_weights())
    with pytest.raises(ModelError, match=r"query_key_value.* is .*, which does not fit the config"):
        local_folder(str(original), weights=True)


def test_an_unknown_weight_is_an_error(tmp_path: Path) -> None:
    weights = {**qwen_weights(), "transformer.h.0.attn.extra.weight": torch.zeros(1)}
    original = write_folder(tmp_path / "original", QWEN, weights)
    with pytest.raises(
        ModelError, match=r"holds a weight transformer.h.0.attn.extra.weight, which a qwen model does not have"
    ):
        local_folder(str(original), weights=True)


def byte_pair_ids(text: str, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's procedure: the piece itself if it is in the table, else join the neighbours whose union has the lowest rank."""
    ids = []
    for piece in regex.findall(PATTERN, unicodedata.normalize("NFC", text)):
        whole = piece.encode()
        parts = [whole] if whole in ranks else [bytes([byte]) for byte in whole]
        while joins := [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks]:
            _, index = min(joins)
            parts[index : index + 2] = [parts[index] + parts[index + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def tiny_ranks() -> dict[bytes, int]:
    learned = [
        "  ",
        "in",
        "er",
        "re",
        "the",
        "ing",
        " re",
        "ret",
        "urn",
        " return",
        "et",
        "tu",
        "é",
        "中",
        "def",
        " (",
        "):",
        "\n\n",
        "    ",
    ]
    tokens = [bytes([byte]) for byte in range(256)] + [word.encode() for word in learned]
    return {token: rank for rank, token in enumerate(tokens)}


def test_qwens_tokenizer_gives_the_ids_of_its_ranks(tmp_path: Path) -> None:
    ranks = tiny_ranks()
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ranks.items()]
    (tmp_path / "qwen.tiktoken").write_text("\n".join(lines))
    tokenizer = load_tokenizer(str(tmp_path))
    for text in (
        "def return_it(x):\n    return  12345\n\n",
        "the e\u0301 中文 'They're",
        "    \t  x = [1,  2]",
        "returning",
    ):
        ids = tokenizer.encode(text)
        assert ids == byte_pair_ids(text, ranks)
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert tokenizer.encode("<|endoftext|><|im_start|><|im_end|><|extra_0|>") == [len(ranks) + i for i in range(4)]
    assert tokenizer.eos_token == "<|endoftext|>"


def test_a_line_that_is_not_a_rank_is_named(tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_text("IQ== 0\nnonsense\n")
    with pytest.raises(ModelError, match=r"qwen.tiktoken:2: is not 'base64 rank'"):
        write_tokenizer(tmp_path / "qwen.tiktoken", tmp_path)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "lacks 209 of the 209 bytes"),
        (["YWI= 400"], "its ranks are not 0, 1, 2, ... without gaps"),
        (["YWI= 256"], "has 257 ranks, but generation_config.json has the EOS token at 5,000"),
    ],
)
def test_an_incomplete_table_of_ranks_is_refused(tmp_path: Path, lines: list[str], problem: str) -> None:
    single = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (tmp_path / "qwen.tiktoken").write_text("\n".join([*single, *lines] if lines else []))
    (tmp_path / "config.json").write_text("{}")
    if lines:
        (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5000}')
    with pytest.raises(ModelError, match=problem):
        load_tokenizer(str(tmp_path))


def test_a_whole_qwen_folder_loads_by_its_own_name(tmp_path: Path) -> None:
    original = write_folder(tmp_path / "Qwen", {**QWEN, "vocab_size": 600}, _grown(qwen_weights(), 600))
    lines = [f"{base64.b64encode(token).decode()} {rank}" for token, rank in tiny_ranks().items()]
    (original / "qwen.tiktoken").write_text("\n".join(lines))
    model = load_model(ModelConfig(model_name_or_path=str(original)), attn_implementation="sdpa", device="cpu")
    assert type(model).__name__ == "Qwen2ForCausalLM"


def _grown(weights: Weights, vocabulary: int) -> Weights:
    return {
        name: F.pad(tensor, (0, 0, 0, vocabulary - VOCABULARY))
        if tensor.shape[0] == VOCABULARY and "c_attn" not in name
        else tensor
        for name, tensor in weights.items()
    }


def test_a_whole_baichuan_folder_with_only_a_sentencepiece_model_loads_by_its_own_name(tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    original = write_folder(tmp_path / "original", SMALL | {"vocab_size": 400}, baichuan_weights(400))
    (original / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["tokenization_baichuan.X", null]}}'
    )
    (tmp_path / "corpus.txt").write_text(Path(__file__).read_text())
    spm.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(original / "tokenizer"), vocab_size=400, model_type="bpe", num_threads=1,
        byte_fallback=True, add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity", minloglevel=2,
    )  # fmt: skip
    config = ModelConfig(model_name_or_path=str(original))
    assert type(load_model(config, attn_implementation="sdpa", device="cpu")).__name__ == "LlamaForCausalLM"
    processor = spm.SentencePieceProcessor(model_file=str(original / "tokenizer.model"))
    text = "def f(x):\n    return  x  # 12\n"
    for folder in (original, local_folder(str(original), weights=True)):
        assert load_tokenizer(str(folder)).encode(text) == processor.encode(text)


def test_a_broken_tokenizer_is_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    original = write_folder(tmp_path / "original", SMALL, small_baichuan_weights())
    (original / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ModelError, match="is not a sentencepiece model, or is truncated"):
        resolve_model(ModelConfig(model_name_or_path=str(original)))


def test_a_large_conversion_is_written_in_parts_that_load_as_one(tmp_path: Path) -> None:
    weights = aquila_weights()
    tensors = [
        StoredTensor(tmp_path, name, tuple(held.shape), lambda held=held: held) for name, held in weights.items()
    ]
    native = local_folder(str(write_folder(tmp_path / "original", AQUILA, weights)), weights=True)
    config = json.loads((native / "config.json").read_text())
    (tmp_path / "parts").mkdir()
    recipe = Recipe("aquila", config, lambda name, tensor: {name: tensor})
    write_native(tensors, recipe, tmp_path / "parts", shard_bytes=20_000)
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    whole, parts = (load_folder(folder, dtype=torch.float32, device="cpu") for folder in (native, tmp_path / "parts"))
    assert torch.equal(whole(IDS).logits, parts(IDS).logits)
