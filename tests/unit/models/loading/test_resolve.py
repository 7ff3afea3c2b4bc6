import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from mftcoder.config.schema import AdapterConfig, ModelConfig
from mftcoder.errors import ModelError
from mftcoder.models.loading.load import load_folder, load_model
from mftcoder.models.loading.resolve import count_weights, planned_model, resolve_model


@pytest.fixture
def folder(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_llama_dir, tmp_path / "model"))


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def forget_end_token(folder: Path) -> None:
    for name in ("config.json", "generation_config.json"):
        change_json(folder / name, eos_token_id=None)
    change_json(folder / "tokenizer_config.json", eos_token=None)


def problem_of(folder: Path | str, **fields: object) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(ModelConfig(model_name_or_path=str(folder), **fields))
    return str(caught.value)


def test_a_good_folder_resolves_to_its_size(tiny_llama_dir: Path) -> None:
    resolved = resolve_model(ModelConfig(model_name_or_path=str(tiny_llama_dir)))
    weights = load_file(tiny_llama_dir / "model.safetensors")
    assert resolved.parameters == sum(tensor.numel() for tensor in weights.values())
    assert resolved.path == tiny_llama_dir


def test_lora_parameters_are_rank_times_inputs_plus_outputs_of_each_linear_layer(tiny_llama_dir: Path) -> None:
    config = resolve_model(ModelConfig(model_name_or_path=str(tiny_llama_dir))).config
    counted = count_weights(*planned_model(config, AdapterConfig(lora_rank=4)))
    attention = (32 + 32) + (32 + 16) + (32 + 16) + (32 + 32)  # q, k, v, o: two of four key-value heads
    mlp = (32 + 64) * 3
    assert counted.trainable == 2 * 4 * (attention + mlp)


def test_a_missing_folder_is_named() -> None:
    assert (
        problem_of("/nowhere/model") == "/nowhere/model: no such folder; give a model folder, a .gguf file or a Hub id"
    )


def test_a_missing_gguf_file_is_named() -> None:
    assert problem_of("/nowhere/model.gguf").startswith("/nowhere/model.gguf: no such file")


def test_without_the_hub_the_error_tells_what_to_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "nobody/nothing: no such folder, and the Hub does not answer" in problem_of("nobody/nothing")


def test_a_folder_without_a_config_is_not_a_model_folder(tmp_path: Path) -> None:
    assert "has no config.json" in problem_of(tmp_path)


def test_the_parent_of_a_model_folder_suggests_it(folder: Path) -> None:
    assert problem_of(folder.parent).endswith(f"Did you mean {folder}?")
    (folder.parent / "its-Q8_0.gguf").touch()
    assert problem_of(folder.parent).endswith(f"Did you mean {folder.parent / 'its-Q8_0.gguf'}?")


def test_an_adapter_folder_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "It is an adapter" in problem_of(tmp_path)


def test_a_missing_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert problem_of(folder).startswith(f"{folder}: it holds no tokenizer")


def test_a_tokenizer_without_an_eos_token_is_refused(folder: Path) -> None:
    forget_end_token(folder)
    assert f"it has no EOS token. Set eos_token in {folder / 'tokenizer_config.json'}" in problem_of(folder)


def test_a_vocabulary_larger_than_the_embedding_is_refused(folder: Path) -> None:
    change_json(folder / "config.json", vocab_size=100)
    assert "tokens, the model's embedding only 100 rows" in problem_of(folder)


def test_pickled_weights_alone_are_refused_until_asked_for(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "has only pickled weights (pytorch_model.bin)" in problem_of(folder)
    weights = load((folder / "pytorch_model.bin").read_bytes())
    torch.save(weights, folder / "pytorch_model.bin")
    config = ModelConfig(model_name_or_path=str(folder), use_safetensors=False)
    assert load_model(config, attn_implementation="sdpa", device="cpu").num_parameters() > 0


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert problem_of(folder).startswith(f"{folder}: has no weights")


def test_a_truncated_weight_file_is_named(folder: Path) -> None:
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:5000])
    assert problem_of(folder).startswith(f"{shard}: is damaged or truncated")


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert f"{folder / 'model-00001-of-00002.safetensors'}: is missing" in problem_of(folder)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of the weight file."""
    weights = load((folder / "model.safetensors").read_bytes())
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


UP = "model.layers.1.mlp.up_proj.weight"


def test_a_weight_that_no_file_holds_is_named_before_anything_is_loaded(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.pop(UP))
    assert f"its files lack 1 of the model's weights: {UP}. They would be random numbers" in problem_of(folder)
    with pytest.raises(ModelError, match=UP):
        load_folder(folder, dtype=torch.float32, device="cpu")


def test_a_weight_of_another_shape_is_named_with_both(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({UP: torch.ones(60, 32)}))
    assert problem_of(folder) == f"{folder}: {UP} is 60 x 32 in the files, but 64 x 32 by config.json"


def test_a_config_that_lost_a_key_does_not_fit_its_weights(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))
    assert "its files lack 270 of the model's weights" in problem_of(folder)


def test_a_config_with_unusable_values_is_an_error_of_one_line(folder: Path) -> None:
    change_json(folder / "config.json", num_attention_heads=0)
    assert problem_of(folder).startswith(f"{folder / 'config.json'}: ")


def test_too_many_layers_are_an_error_of_one_line(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=10**30)
    assert "no model can be made from these values: 1e+30 layers are too many" in problem_of(folder)


def test_a_tensor_that_the_model_does_not_have_is_named_and_ignored(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}))
    resolved = resolve_model(ModelConfig(model_name_or_path=str(folder)))
    assert (
        "its files hold 1 tensors that the model does not have; they are not read: model.layers.0"
        in resolved.unused_line
    )


def test_a_buffer_of_an_old_checkpoint_is_ignored_silently(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert resolve_model(ModelConfig(model_name_or_path=str(folder))).unused_line == ""


@pytest.mark.parametrize("index", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "{"])
def test_an_index_without_files_is_one_line(folder: Path, index: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    assert problem_of(folder).startswith(f"{folder / 'model.safetensors.index.json'}: ")
    assert "\n" not in problem_of(folder)


def test_shards_that_no_index_lists_are_refused_as_the_loader_would(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    assert "but no model.safetensors.index.json that lists them" in problem_of(folder)


def shards(folder: Path, files: dict[str, dict[str, torch.Tensor]], **more: Any) -> None:
    """Write the weights into these files, and an index that names the first file with each tensor."""
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for file, held in files.items():
        save_file(held, folder / file, metadata={"format": "pt"})
        weight_map = {**dict.fromkeys(held, file), **weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map, **more}))


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    """transformers uses the last one, regardless of the index."""
    weights = load((folder / "model.safetensors").read_bytes())
    head = {"lm_head.weight": weights.pop("lm_head.weight")}
    shards(folder, {"a.safetensors": weights, "b.safetensors": {**head, UP: weights[UP] + 1}}, metadata={})
    assert problem_of(folder).startswith(f"{folder / 'b.safetensors'}: holds {UP}, which a.safetensors also holds")


def test_an_index_that_transformers_cannot_read_is_refused_with_a_remedy(folder: Path) -> None:
    weights = load((folder / "model.safetensors").read_bytes())
    shards(folder, {"a.safetensors": weights})
    index = folder / "model.safetensors.index.json"
    assert problem_of(folder).startswith(f'{index}: has no "metadata"')
    index.write_text(json.dumps({**json.loads(index.read_text()), "metadata": {}}))
    load_folder(folder, dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("settings", [{}, {"quant_method": "gptq", "bits": 4}, {"quant_method": "borg"}])
def test_a_base_that_is_already_quantized_is_refused(folder: Path, settings: dict[str, Any]) -> None:
    change_json(folder / "config.json", quantization_config=settings)
    assert f"{folder}: its weights are already quantized. Give the base model in its original" in problem_of(folder)


class Calls:
    """The code that unpickling would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def pickled(folder: Path, content: object) -> Path:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def test_a_malicious_pickle_is_refused_in_one_line_and_not_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    path = pickled(folder, {"model.norm.weight": Calls()})
    problem = problem_of(folder, use_safetensors=False)
    assert problem.startswith(f"{path}: holds Python objects beside its weights. They could run code")
    assert "\n" not in problem
    assert not (folder / "executed").exists()


def test_a_truncated_pickle_is_an_error_of_one_line(folder: Path) -> None:
    path = pickled(folder, load((folder / "model.safetensors").read_bytes()))
    path.write_bytes(path.read_bytes()[:5000])
    assert problem_of(folder, use_safetensors=False) == f"{path}: is damaged or truncated. Download it again"


def test_the_names_and_shapes_of_pickled_weights_are_compared_too(folder: Path) -> None:
    weights = load((folder / "model.safetensors").read_bytes())
    del weights[UP]
    pickled(folder, weights)
    assert f"of the model's weights: {UP}" in problem_of(folder, use_safetensors=False)


def test_an_unknown_architecture_is_named(folder: Path) -> None:
    change_json(folder / "config.json", model_type="borg")
    assert "unknown architecture 'borg'" in problem_of(folder)


def test_remote_code_is_not_run_unless_asked(folder: Path) -> None:
    change_json(folder / "config.json", model_type="borg", auto_map={"AutoConfig": "borg.BorgConfig"})
    assert "model type 'borg' comes with its own Python code. Set model.trust_remote_code: true" in problem_of(folder)


def test_an_encoder_is_refused(folder: Path) -> None:
    change_json(folder / "config.json", model_type="vit")
    assert "model type 'vit' is not a causal language model" in problem_of(folder)


def test_all_problems_of_a_folder_are_reported_together(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    forget_end_token(folder)
    assert len(problem_of(folder).splitlines()) == 2


def test_a_loaded_model_has_no_cache_and_the_requested_dtype(tiny_llama_dir: Path) -> None:
    model = load_model(ModelConfig(model_name_or_path=str(tiny_llama_dir)), attn_implementation="sdpa", device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache is False
    assert not model.training
