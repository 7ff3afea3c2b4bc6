import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from mftcoder.config.schema import AdapterConfig, ModelConfig
from mftcoder.errors import ModelError
from mftcoder.models.load import count_parameters, load_model, resolve_model


@pytest.fixture
def folder(tiny_llama_dir: Path, tmp_path: Path) -> Path:
    """A copy to break."""
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
    counted = count_parameters(config, AdapterConfig(lora_rank=4))
    attention = (32 + 32) + (32 + 16) + (32 + 16) + (32 + 32)  # q, k, v, o: two of four key-value heads
    mlp = (32 + 64) * 3
    assert counted.trainable == 2 * 4 * (attention + mlp)


def test_a_missing_folder_is_named() -> None:
    assert (
        problem_of("/nowhere/model") == "/nowhere/model: no such folder; give a model folder, a .gguf file or a Hub id"
    )


def test_a_missing_gguf_file_is_named() -> None:
    assert problem_of("/nowhere/model.gguf").startswith("/nowhere/model.gguf: no such file")


def test_a_hub_id_without_a_hub_says_what_to_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "nobody/nothing: no such folder here, and the Hub does not answer" in problem_of("nobody/nothing")


def test_a_folder_without_a_config_is_no_model_folder(tmp_path: Path) -> None:
    assert "has no config.json" in problem_of(tmp_path)


def test_the_parent_of_a_model_folder_suggests_it(folder: Path) -> None:
    assert problem_of(folder.parent).endswith(f"Did you mean {folder}?")


def test_an_adapter_folder_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "It is an adapter" in problem_of(tmp_path)


def test_a_missing_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert problem_of(folder).startswith(f"{folder}: there is no tokenizer in it")


def test_a_tokenizer_without_an_end_token_is_refused(folder: Path) -> None:
    forget_end_token(folder)
    assert f"it has no end token. Set eos_token in {folder / 'tokenizer_config.json'}" in problem_of(folder)


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


def test_a_weight_file_cut_short_is_named(folder: Path) -> None:
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:5000])
    assert problem_of(folder).startswith(f"{shard}: is damaged or cut short")


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert f"{folder / 'model-00001-of-00002.safetensors'}: is missing" in problem_of(folder)


def test_a_weight_that_no_file_holds_is_an_error_not_a_random_number(folder: Path) -> None:
    weights = load((folder / "model.safetensors").read_bytes())
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"1 weights of the model are not in its files, model.layers.1.mlp.up_proj.weight"
    ):
        load_model(ModelConfig(model_name_or_path=str(folder)), attn_implementation="sdpa", device="cpu")


def test_an_unknown_architecture_is_named(folder: Path) -> None:
    change_json(folder / "config.json", model_type="borg")
    assert "unknown architecture 'borg'" in problem_of(folder)


def test_remote_code_is_not_run_unless_asked(folder: Path) -> None:
    change_json(folder / "config.json", model_type="borg", auto_map={"AutoConfig": "borg.BorgConfig"})
    assert "model type 'borg' comes with Python code of its own. Set model.trust_remote_code: true" in problem_of(
        folder
    )


def test_an_encoder_is_refused(folder: Path) -> None:
    change_json(folder / "config.json", model_type="vit")
    assert "model type 'vit' is not a causal language model" in problem_of(folder)


def test_all_problems_of_a_folder_come_at_once(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    forget_end_token(folder)
    assert len(problem_of(folder).splitlines()) == 2


def test_a_loaded_model_keeps_no_cache_and_has_the_asked_format(tiny_llama_dir: Path) -> None:
    model = load_model(ModelConfig(model_name_or_path=str(tiny_llama_dir)), attn_implementation="sdpa", device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache is False
    assert not model.training
