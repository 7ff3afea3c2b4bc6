import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from mftcoder import cache
from mftcoder.config.schema import ModelConfig
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import ModelError
from mftcoder.models.conversion.gguf import folder_of as gguf_folder
from mftcoder.models.export.source import find_source
from mftcoder.models.loading.load import load_model
from mftcoder.models.loading.resolve import resolve_model

HIDDEN, HEADS, LAYERS, INNER = 32, 4, 1, 64


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MFTCODER_CACHE", str(tmp_path / "cache"))


def write_gguf(
    path: Path, *, quantised: bool, pre: str = "smollm", order: gguf.GGUFEndian = gguf.GGUFEndian.LITTLE
) -> dict[str, np.ndarray]:
    """A random Llama with a byte-level vocabulary that splits digits first, like SmolLM2's; returns its tensors."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ĠĠ"]
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama", endianess=order)
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    shapes = {"token_embd.weight": (len(tokens), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for name, shape in {
        "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN),
        "ffn_down": (HIDDEN, INNER), "attn_norm": (HIDDEN,), "ffn_norm": (HIDDEN,),
    }.items():  # fmt: skip
        shapes[f"blk.0.{name}.weight"] = shape
    tensors = {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if quantised and tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_plain_file_becomes_a_folder_with_the_same_weights(tmp_path: Path) -> None:
    tensors = write_gguf(tmp_path / "tiny.gguf", quantised=False)
    resolved = resolve_model(ModelConfig(model_name_or_path=str(tmp_path / "tiny.gguf")))
    model = AutoModelForCausalLM.from_pretrained(resolved.path)
    assert model.dtype == torch.float32
    layer = model.model.layers[0]
    np.testing.assert_array_equal(layer.mlp.down_proj.weight.detach(), tensors["blk.0.ffn_down.weight"])
    np.testing.assert_array_equal(model.model.embed_tokens.weight.detach(), tensors["token_embd.weight"])
    assert resolved.parameters == sum(tensor.size for tensor in tensors.values())


def test_a_quantized_file_becomes_plain_bfloat16_that_trains(tmp_path: Path) -> None:
    tensors = write_gguf(tmp_path / "tiny.gguf", quantised=True)
    config = ModelConfig(model_name_or_path=str(tmp_path / "tiny.gguf"))
    model = load_model(config, attn_implementation="sdpa", device="cpu")
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.dtype == torch.bfloat16
    assert weight.requires_grad
    expected = torch.from_numpy(tensors["blk.0.ffn_up.weight"])
    assert (weight.float() - expected).abs().max() < 0.01  # a block's largest, 0.4, over 127, and bfloat16's 0.4 / 256


def test_the_tokenizer_cuts_numbers_before_anything_else(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=False)
    folder = resolve_model(ModelConfig(model_name_or_path=str(tmp_path / "tiny.gguf"))).path
    for name in (folder, tmp_path / "tiny.gguf"):
        tokenizer = load_tokenizer(str(name))
        tokens = [tokenizer.backend.id_to_token(token) for token in tokenizer.encode("x  12")]
        assert tokens == ["x", "ĠĠ", "1", "2"]
        assert tokenizer.eos_token == "<|im_end|>"


def test_it_is_converted_once_for_its_content(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=False)
    (tmp_path / "again.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes())
    first = resolve_model(ModelConfig(model_name_or_path=str(tmp_path / "tiny.gguf"))).path
    made = (first / "config.json").stat().st_mtime_ns
    assert resolve_model(ModelConfig(model_name_or_path=str(tmp_path / "tiny.gguf"))).path == first
    assert (first / "config.json").stat().st_mtime_ns == made
    assert not [path for path in first.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json"])
def test_a_folder_of_the_cache_that_lost_a_file_is_made_again(tmp_path: Path, lost: str) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=False)
    folder = gguf_folder(tmp_path / "tiny.gguf")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / lost).unlink()
    assert gguf_folder(tmp_path / "tiny.gguf") == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_weight_file_of_the_cache_that_is_cut_short_is_made_again(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=False)
    weights = gguf_folder(tmp_path / "tiny.gguf") / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    gguf_folder(tmp_path / "tiny.gguf")
    assert weights.read_bytes() == whole


def test_a_file_is_parsed_once_and_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=False)
    done: list[str] = []
    reader, digest = gguf.GGUFReader, hashlib.file_digest
    monkeypatch.setattr(gguf, "GGUFReader", lambda file: (done.append("parsed"), reader(file))[1])
    monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: (done.append("hashed"), digest(*arguments))[1])
    monkeypatch.setattr(cache, "REMEMBERED_FROM", 0)
    for _ in range(3):
        resolve_model(ModelConfig(model_name_or_path=str(tmp_path / "tiny.gguf")))
    assert sorted(done) == ["hashed", "parsed"]


def test_another_tokenizer_may_be_named_if_the_files_own_is_unsupported(
    tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=False, pre="borg")
    with pytest.raises(ModelError, match="has the unknown splitting rule 'borg'"):
        resolve_model(ModelConfig(model_name_or_path=str(tmp_path / "tiny.gguf")))
    with pytest.raises(ModelError, match="has the unknown splitting rule 'borg'"):
        find_source(str(tmp_path / "tiny.gguf"))
    named = ModelConfig(model_name_or_path=str(tmp_path / "tiny.gguf"), tokenizer_name_or_path=str(tiny_tokenizer_dir))
    with pytest.raises(ModelError, match="the tokenizer has 1,000 tokens, the model's embedding only 260 rows"):
        resolve_model(named)


def test_a_file_with_the_bytes_of_another_machine_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=True, order=gguf.GGUFEndian.BIG)
    with pytest.raises(ModelError, match=r"tiny.gguf: has the byte order of another machine"):
        resolve_model(ModelConfig(model_name_or_path=str(tmp_path / "tiny.gguf")))


def test_metadata_that_is_not_text_is_an_error_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, quantised=False)
    path.write_bytes(path.read_bytes().replace(b"smollm", b"smol\xff\xff"))
    with pytest.raises(ModelError, match=r"tiny.gguf: 'utf-8' codec can't decode byte 0xff"):
        resolve_model(ModelConfig(model_name_or_path=str(path)))


def test_a_truncated_file_is_named_and_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, quantised=False)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ModelError, match=r"tiny.gguf: is not a GGUF file, or is truncated"):
        resolve_model(ModelConfig(model_name_or_path=str(path)))
    assert not list((tmp_path / "cache" / "models").iterdir())
