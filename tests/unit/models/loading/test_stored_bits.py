"""Model folders whose files hold quantized weights are read as what they are, or refused."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mftcoder.errors import ModelError
from mftcoder.models.loading.load import load_folder

needs_compressed_tensors = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None, reason="compressed-tensors is not installed"
)
GROUP = 32
LARGEST = torch.finfo(torch.float8_e4m3fn).max


def by_rows(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """int8 with a scale for each row: the tensors of the file, and what they stand for."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    values = (weight / scale).round().to(torch.int8)
    return packed(values, scale, bits=8), values * scale


def by_groups(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Four bits with a scale for each group of a row."""
    groups = weight.view(weight.shape[0], -1, GROUP)
    scale = groups.abs().amax(2) / 7
    values = (groups / scale[..., None]).round().to(torch.int8)
    return packed(values.view_as(weight), scale, bits=4), (values * scale[..., None]).view_as(weight)


def packed(values: Tensor, scale: Tensor, bits: int) -> dict[str, Tensor]:
    """Several values to an int32, the first one in its lowest bits, each moved to be positive."""
    moved = (values.long() + 2 ** (bits - 1)).view(values.shape[0], -1, 32 // bits)
    words = (moved << (torch.arange(32 // bits) * bits)).sum(2)
    signed = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
    return {"weight_packed": signed, "weight_scale": scale, "weight_shape": torch.tensor(values.shape)}


def in_fp8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """e4m3 with a scale for each row."""
    scale = weight.abs().amax(1, keepdim=True) / LARGEST
    values = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": values, "weight_scale": scale}, values.float() * scale


def in_fp8_by_token(values: Tensor) -> Tensor:
    """What is left of activations [..., columns] with a scale for each token."""
    scale = values.abs().amax(-1, keepdim=True) / LARGEST
    return (values / scale).to(torch.float8_e4m3fn).float() * scale


def weights(bits: int, kind: str, strategy: str, group: int | None = None) -> dict[str, Any]:
    values = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, "dynamic": False}
    return {**values, **({"group_size": group} if group else {})}


FP8_ACTIVATIONS = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
SCHEMES: dict[str, tuple[Callable[[Tensor], tuple[dict[str, Tensor], Tensor]], str, dict[str, Any], Any]] = {
    "int8": (by_rows, "pack-quantized", weights(8, "int", "channel"), None),
    "gptq": (by_groups, "pack-quantized", weights(4, "int", "group", GROUP), None),
    "fp8": (in_fp8, "float-quantized", weights(8, "float", "channel"), FP8_ACTIVATIONS),
}


def release(model: Path, out: Path, method: str) -> dict[str, Tensor]:
    """Write the model's linear layers in fewer bits, by the formulas above; what the layers then stand for."""
    pack, form, of_weights, of_inputs = SCHEMES[method]
    shutil.copytree(model, out)
    tensors, meant = load_file(model / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        stored, meant[name] = pack(tensors.pop(name))
        tensors |= {name.removesuffix("weight") + key: value.contiguous() for key, value in stored.items()}
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    group = {"targets": ["Linear"], "weights": of_weights, "input_activations": of_inputs, "format": form}
    stored_so = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed"}
    change(out, quantization_config={**stored_so, "config_groups": {"group_0": group}, "ignore": ["lm_head"]})
    return meant


def change(folder: Path, **values: Any) -> None:
    """Change settings of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | values
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def loaded(folder: Path, **options: Any) -> Any:
    return load_folder(folder, dtype=torch.float32, device="cpu", **options)


@needs_compressed_tensors
@pytest.mark.parametrize("method", SCHEMES)
def test_a_release_computes_with_the_weights_that_its_bits_stand_for(
    tiny_llama_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    meant = release(tiny_llama_dir, tmp_path / "q", method)
    model, expected = loaded(tmp_path / "q"), loaded(tiny_llama_dir)
    expected.load_state_dict(meant, strict=False)
    for name, layer in expected.named_modules():
        if method == "fp8" and isinstance(layer, nn.Linear) and name != "lm_head":
            layer.register_forward_pre_hook(lambda _, given: (in_fp8_by_token(given[0]),))
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, expected(ids).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(model(ids).logits, loaded(tiny_llama_dir)(ids).logits, atol=1e-4, rtol=1e-4)
    assert {model.get_parameter(name).dtype for name in meant} == {torch.float32}
    assert capfd.readouterr().err == ""


def test_without_its_package_a_release_is_refused_with_the_extra_that_has_it(
    tiny_llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(tiny_llama_dir, tmp_path / "q", "int8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    expected = r"q: its weights are quantized by compressed-tensors, which needs compressed-tensors\. .*'mftcoder\[compressed\]'$"
    with pytest.raises(ModelError, match=expected):
        loaded(tmp_path / "q")
    with pytest.raises(
        ModelError, match=r"^4bit needs bitsandbytes\. Install it with: pip install 'mftcoder\[qlora\]'$"
    ):
        loaded(tiny_llama_dir, quantization="4bit")


@pytest.mark.parametrize("method", ["int8", "fp8"])
def test_quantized_weights_are_not_held_in_other_bits(tiny_llama_dir: Path, tmp_path: Path, method: str) -> None:
    release(tiny_llama_dir, tmp_path / "q", method)
    for hold in ("4bit", "8bit", "fp8"):
        with pytest.raises(
            ModelError, match=rf"quantized already \(compressed-tensors\), so they cannot be held in {hold}"
        ):
            loaded(tmp_path / "q", quantization=hold)


def test_a_method_that_transformers_does_not_know_is_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    """transformers only warns, and takes the bits for weights."""
    release(tiny_llama_dir, tmp_path / "q", "fp8")
    for settings, named in (({"quant_method": "borg"}, "borg"), ({"bits": 4}, "a method that is not named")):
        change(tmp_path / "q", quantization_config=settings)
        with pytest.raises(ModelError, match=f"are quantized by {named}, which transformers cannot read"):
            loaded(tmp_path / "q")


@pytest.mark.parametrize("method", SCHEMES)
def test_quantized_weights_whose_config_was_lost_are_refused(tiny_llama_dir: Path, tmp_path: Path, method: str) -> None:
    release(tiny_llama_dir, tmp_path / "q", method)
    change(tmp_path / "q", quantization_config=None)
    expected = "hold quantized weights .* has no quantization_config" if method == "fp8" else "its files lack 14 of"
    with pytest.raises(ModelError, match=expected):
        loaded(tmp_path / "q")


@needs_compressed_tensors
@pytest.mark.parametrize("method", SCHEMES)
def test_a_config_that_explains_only_some_of_the_quantized_tensors_is_refused(
    tiny_llama_dir: Path, tmp_path: Path, method: str
) -> None:
    release(tiny_llama_dir, tmp_path / "q", method)
    settings = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    change(tmp_path / "q", quantization_config={**settings, "ignore": ["lm_head", "re:.*q_proj"]})
    expected = "does not explain 2 tensors of its files: .*q_proj" if method == "fp8" else "its files lack 2 of"
    with pytest.raises(ModelError, match=expected):
        loaded(tmp_path / "q")


@needs_compressed_tensors
def test_scales_of_another_group_size_are_refused(tiny_llama_dir: Path, tmp_path: Path) -> None:
    release(tiny_llama_dir, tmp_path / "q", "gptq")
    settings = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    settings["config_groups"]["group_0"]["weights"]["group_size"] = 16
    change(tmp_path / "q", quantization_config=settings)
    with pytest.raises(ModelError, match="q: cannot be loaded: "):
        loaded(tmp_path / "q")
