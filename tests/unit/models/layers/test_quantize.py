"""A base in 4 or 8 bits: its size, training over it, and what is refused before anything is loaded."""

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from mftcoder.config.load import parse_config
from mftcoder.config.schema import AdapterConfig, ModelConfig, RunConfig
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import ConfigError, ModelError
from mftcoder.kernels import attention
from mftcoder.models.export.folder import held_base
from mftcoder.models.export.source import ModelSource, merged_in_memory
from mftcoder.models.gpu_memory.plans import weight_bytes
from mftcoder.models.gpu_memory.recompute import Recomputation, decoder_layers, recompute_layers
from mftcoder.models.layers.adapters import attach, load_adapter, save_adapter, trainable_parameters
from mftcoder.models.layers.quantize import as_held
from mftcoder.models.loading.load import load_folder, load_model
from mftcoder.models.loading.resolve import count_weights, planned_model, resolve_model
from mftcoder.training.forward.isolation import verify_isolation
from mftcoder.training.forward.language_model import LanguageModel

needs_bitsandbytes = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes")


def load(folder: Path, quantization: str | None, dtype: str = "float32", kept: tuple[str, ...] = ()) -> Any:
    fields: dict[str, Any] = {"quantization": quantization, "dtype": dtype, "modules_to_not_convert": kept}
    config = ModelConfig(model_name_or_path=str(folder), **fields)
    return load_model(config, attn_implementation="sdpa", device="cpu")


def run_config(folder: Path, **sections: dict[str, Any]) -> RunConfig:
    raw: dict[str, Any] = {
        "model": {"model_name_or_path": str(folder)},
        "tasks": {"a": "/data/a"},
        "output_dir": "/run",
    }
    return parse_config(
        {**raw, **{name: {**raw.get(name, {}), **section} for name, section in sections.items()}}, origin="x"
    )


def bytes_of(model: Any) -> int:
    """The bytes of its weights and of bitsandbytes' scales."""
    states = [
        module.weight.quant_state
        for module in model.modules()
        if hasattr(getattr(module, "weight", None), "quant_state")
    ]
    scales = sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)
    return scales + sum(parameter.nbytes for parameter in model.parameters())


@needs_bitsandbytes
@pytest.mark.parametrize("kept", [(), ("down_proj", "layers.0")])
@pytest.mark.parametrize("quantization", [None, "4bit", "8bit", "fp8", "4bit-fp8"])
def test_the_estimated_bytes_of_the_weights_are_those_of_the_loaded_model(
    tiny_llama_dir: Path, quantization: str, kept: tuple[str, ...]
) -> None:
    config = run_config(tiny_llama_dir, model={"quantization": quantization, "dtype": "bfloat16"})
    model = load(tiny_llama_dir, quantization, "bfloat16", kept)
    planned = planned_model(resolve_model(config.model).config, None, quantization=quantization, kept=kept)
    count = count_weights(*planned)
    assert weight_bytes(config, count) == pytest.approx(bytes_of(model), rel=0.02)


@needs_bitsandbytes
@pytest.mark.parametrize(("quantization", "closest"), [("4bit", 0.25), ("8bit", 0.03), ("fp8", 0.1)])
def test_predictions_stay_near_those_of_the_unquantized_weights(
    tiny_llama_dir: Path, quantization: str, closest: float
) -> None:
    ids = torch.arange(40)[None]
    with torch.no_grad():
        whole, held = (load(tiny_llama_dir, bits)(input_ids=ids).logits for bits in (None, quantization))
    assert 0 < (whole - held).norm() / whole.norm() < closest


@needs_bitsandbytes
@pytest.mark.parametrize(("quantization", "dora"), [("4bit", False), ("8bit", False), ("4bit", True)])
def test_lora_weights_get_the_same_gradients_with_and_without_checkpointing(
    tiny_llama_dir: Path, quantization: str, dora: bool
) -> None:
    gradients = []
    for setting in (False, "selective", True):
        torch.manual_seed(0)
        base = load(tiny_llama_dir, quantization)
        module = attach(base, AdapterConfig(lora_rank=4, use_dora=dora))
        recompute_layers(decoder_layers(base), Recomputation.of(setting))
        ids = torch.arange(40)[None]
        module.train()(input_ids=ids, labels=ids).loss.backward()
        assert all("lora_" in name for name, _ in trainable_parameters(module))
        gradients.append([parameter.grad for _, parameter in trainable_parameters(module)])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(*gradients, strict=True))
    assert any(gradient.abs().max() > 0 for gradient in gradients[0])


@needs_bitsandbytes
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_packed_samples_are_verified_to_be_separate(tiny_llama_dir: Path, quantization: str, dtype: str) -> None:
    attention.register()
    model = load(tiny_llama_dir, quantization, dtype)
    model.set_attn_implementation("segments")
    language_model = LanguageModel(model, attn_implementation="segments", num_tasks=1)
    verify_isolation(language_model, (torch.arange(5, 45), torch.arange(7, 50)))


@needs_bitsandbytes
@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_lora_weights_have_the_dtype_of_the_products(tiny_llama_dir: Path, quantization: str) -> None:
    module = attach(load(tiny_llama_dir, quantization, "bfloat16"), AdapterConfig())
    assert {parameter.dtype for _, parameter in trainable_parameters(module)} == {torch.bfloat16}


@needs_bitsandbytes
def test_a_forward_pass_without_gradients_does_not_change_the_packed_weights(tiny_llama_dir: Path) -> None:
    """On CPUs with avx512_bf16 bitsandbytes would repack them."""
    model = load(tiny_llama_dir, "4bit", "bfloat16")
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model(input_ids=torch.arange(8)[None])
    after = model.state_dict()
    assert all(torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8)) for name in before)


@needs_bitsandbytes
def test_lora_over_gpt2s_transposed_layers_merges_in_the_right_orientation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": 100}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(tmp_path / "base")
    held, whole, merged = (
        load_folder(tmp_path / "base", dtype=torch.float32, device="cpu", quantization=bits)
        for bits in ("4bit", None, None)
    )
    module = attach(held, AdapterConfig(lora_rank=4))
    for _, parameter in trainable_parameters(module):
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_adapter(module, tmp_path / "adapter")
    ids = torch.arange(40)[None]
    expected = load_adapter(whole, tmp_path / "adapter").eval()(input_ids=ids).logits
    torch.testing.assert_close(merged_in_memory(merged, tmp_path / "adapter")(input_ids=ids).logits, expected)


def test_quantized_weights_cannot_be_trained() -> None:
    with pytest.raises(
        ConfigError, match=r"4 bits are frozen and cannot be trained themselves. Set adapter.type: lora"
    ):
        run_config(Path("m"), model={"quantization": "4bit"}, adapter={"type": "full"})


def test_dora_over_8_bits_is_refused_with_an_alternative() -> None:
    with pytest.raises(ConfigError, match=r"Set model.quantization: 4bit, or adapter.use_dora: false"):
        run_config(Path("m"), model={"quantization": "8bit"}, adapter={"use_dora": True})


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"adapter": {"use_dora": True}}, r"which layers in fp8 do not give. Set model.quantization: 4bit"),
        ({"adapter": {"type": "full"}}, r"held in fp8 are frozen and cannot be trained themselves"),
        ({"model": {"dtype": "float32"}}, r"model.dtype: float32: products in fp8 give bfloat16"),
        (
            {"model": {"quantization": "4bit-fp8"}, "adapter": {"lora_dropout": 0.1}},
            r"with adapter.lora_dropout layers multiply their 4-bit weights in bfloat16",
        ),
        (
            {"model": {"quantization": "4bit-fp8"}, "adapter": {"lora_target": ["q_proj"]}},
            r"with adapter.lora_target \(other than all-linear\) layers multiply",
        ),
    ],
)
def test_what_fp8_does_not_support_is_refused_with_an_alternative(sections: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        run_config(Path("m"), **{**sections, "model": {"quantization": "fp8", **sections.get("model", {})}})


def test_a_model_without_layers_for_fp8_is_refused(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"n_embd": 36, "n_layer": 1, "n_head": 4, "n_positions": 64, "vocab_size": 100}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has no linear layer whose sizes are multiples of 16, which fp8 needs"):
        load_folder(tmp_path, dtype=torch.bfloat16, device="cpu", quantization="fp8")


@needs_bitsandbytes
@pytest.mark.parametrize("quantization", ["4bit", "8bit", "fp8", "4bit-fp8"])
def test_the_values_of_as_held_are_those_that_loaded_layers_multiply(tiny_llama_dir: Path, quantization: str) -> None:
    layer = load(tiny_llama_dir, quantization, "bfloat16").model.layers[0].mlp.up_proj
    whole = load(tiny_llama_dir, None, "bfloat16").model.layers[0].mlp.up_proj
    addition = attach_to(load(tiny_llama_dir, quantization, "bfloat16")).model.layers[0].mlp.up_proj
    held = as_held(whole.weight.data, quantization, torch.bfloat16)
    x = torch.eye(32, dtype=torch.bfloat16)  # ones and zeros are rounded by nothing
    multiplied = (addition if quantization == "4bit-fp8" else layer)(x).T
    torch.testing.assert_close(multiplied, held, rtol=0.02 if quantization == "8bit" else 0, atol=0)


def attach_to(base: Any) -> Any:
    return attach(base, AdapterConfig(lora_rank=4)).get_base_model()


def test_fp8_does_not_need_bitsandbytes(tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    assert resolve_model(ModelConfig(model_name_or_path=str(tiny_llama_dir), quantization="fp8")).parameters


def test_without_bitsandbytes_the_error_tells_how_to_install_it(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"not installed. Install it with: pip install 'mftcoder\[qlora\]'"):
        resolve_model(ModelConfig(model_name_or_path=str(tiny_llama_dir), quantization="4bit"))


@needs_bitsandbytes
def test_a_base_that_is_already_quantized_is_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    load(tiny_llama_dir, "4bit").save_pretrained(tmp_path)
    for file in tiny_llama_dir.glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match=r"are already quantized. Give the base model in its original precision"):
        resolve_model(ModelConfig(model_name_or_path=str(tmp_path), quantization="4bit"))


@needs_bitsandbytes
@pytest.mark.parametrize("quantization", ["4bit", "8bit", "fp8", "4bit-fp8"])
def test_layers_in_modules_to_not_convert_keep_their_weights_and_all_others_are_quantized(
    tiny_llama_dir: Path, quantization: str
) -> None:
    held, whole = (load(tiny_llama_dir, q, "bfloat16", ("down_proj", "layers.0")) for q in (quantization, None))
    layers = {path: layer for path, layer in whole.named_modules() if type(layer) is nn.Linear}
    kept = {path for path, layer in layers.items() if type(held.get_submodule(path)) is nn.Linear}
    assert kept == {path for path in layers if "layers.1" not in path or "down_proj" in path}  # the head, too
    assert len(kept) == 7 + 1 + 1
    assert all(torch.equal(held.get_submodule(path).weight, layers[path].weight) for path in kept)


@needs_bitsandbytes
@pytest.mark.parametrize("quantization", ["4bit", "fp8"])
def test_a_layer_is_left_out_by_whole_parts_of_its_path(tiny_llama_dir: Path, quantization: str) -> None:
    """`proj` is part of a word, `layers.1` is not the whole of `layers.11`."""
    for name in ("proj", "layer", "ayers.1", "down_projection"):
        with pytest.raises(ModelError) as found:
            load(tiny_llama_dir, quantization, "bfloat16", (name, "q_proj"))
        (problem,) = found.value.problems
        assert problem.startswith(
            f"model.modules_to_not_convert: {name}: no layer that would be converted has this in its path"
        )
        assert problem.endswith("down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj")


@pytest.mark.parametrize(
    ("kept", "problem"),
    [(("prj",), "prj: no layer that"), (("lm_head",), "the head never is"), (("model",), "leaves no layer")],
)
def test_modules_to_not_convert_that_make_no_sense_are_refused_before_anything_is_loaded(
    tiny_llama_dir: Path, kept: tuple[str, ...], problem: str
) -> None:
    config = ModelConfig(model_name_or_path=str(tiny_llama_dir), quantization="fp8", modules_to_not_convert=kept)
    with pytest.raises(ModelError, match=problem):
        resolve_model(config)


@pytest.mark.parametrize("quantization", ["fp8", pytest.param("4bit", marks=needs_bitsandbytes)])
def test_lora_over_a_base_with_layers_left_out_merges_as_it_was_trained(
    tiny_llama_dir: Path, tmp_path: Path, quantization: str
) -> None:
    kept = ("down_proj", "layers.0")
    held, base = (load(tiny_llama_dir, quantization, "bfloat16", kept) for _ in range(2))
    save_adapter(attach(base, AdapterConfig(lora_rank=4)), tmp_path / "adapter")
    sections = {"model": {"quantization": quantization, "modules_to_not_convert": kept}}
    run = run_config(tiny_llama_dir, **sections)
    tokenizer = load_tokenizer(str(tiny_llama_dir))
    source = ModelSource("run", tiny_llama_dir, tmp_path / "adapter", tokenizer, run)
    change = held_base(source)
    for path, weight in load_file(tiny_llama_dir / "model.safetensors").items():
        layer = held.get_submodule(path.removesuffix(".weight"))
        merged = change(path, weight)
        if type(layer) is nn.Linear:
            assert merged is weight, path
        elif "_proj" in path:
            assert torch.equal(merged, as_held(weight, quantization, torch.bfloat16)), path
    again = source.load(device="cpu", dtype=torch.bfloat16, as_trained=True)
    assert type(again.get_base_model().model.layers[1].mlp.down_proj.base_layer) is nn.Linear
    assert type(again.get_base_model().model.layers[1].mlp.up_proj.base_layer) is not nn.Linear
