"""Folders with vocab.json and merges.txt are split as their family splits text, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from mftcoder.data.tokenizers.byte_level import byte_letters
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import ModelError

FIRST = (*"abcdefgh12", "ab", "12", "<|endoftext|>")
LETTERS = [letter for letter in byte_letters().values() if letter not in FIRST]
VOCABULARY = {token: number for number, token in enumerate([*FIRST, *LETTERS])}


def write_tables(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n1 2\n")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("family", "ids"), [("gpt2", [10, 11, 12]), ("qwen2", [10, 8, 9, 12]), ("starcoder2", [10, 8, 9, 12])]
)
def test_a_vocabulary_is_used_with_the_splitting_rule_of_its_family(
    tmp_path: Path, family: str, ids: list[int]
) -> None:
    tokenizer = load_tokenizer(str(write_tables(tmp_path, {"model_type": family, "eos_token_id": 12})))
    assert tokenizer.encode("ab12<|endoftext|>") == ids
    assert tokenizer.eos_token == "<|endoftext|>"


def test_special_tokens_of_the_settings_are_found_in_a_text(tmp_path: Path) -> None:
    write_tables(tmp_path, {"model_type": "qwen2"})
    settings = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    start, end = len(VOCABULARY), len(VOCABULARY) + 1
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|im_start|>": start, "<|im_end|>": end}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode("<|im_start|>ab<|im_end|>") == [start, 10, end]
    assert tokenizer.eos_id == end


def test_a_family_with_an_unknown_splitting_rule_is_refused(tmp_path: Path) -> None:
    write_tables(tmp_path, {"model_type": "borg", "eos_token_id": 12})
    message = r"the splitting rule of model type 'borg' is unknown. Set model.tokenizer_name_or_path"
    with pytest.raises(ModelError, match=message):
        load_tokenizer(str(tmp_path))


def test_merges_of_another_vocabulary_are_one_line(tmp_path: Path) -> None:
    write_tables(tmp_path, {"model_type": "gpt2", "eos_token_id": 12})
    (tmp_path / "merges.txt").write_text("x y\n")
    with pytest.raises(ModelError, match="its tokenizer cannot be read, it may be damaged"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("merges.txt", "", r"merges.txt: lacks the merges of 22 tokens of vocab.json"),
        (
            "vocab.json",
            json.dumps(dict.fromkeys(VOCABULARY, 0)),
            "vocab.json: is not a table of tokens with one id each",
        ),
        ("vocab.json", "[]", "vocab.json: is not a table of tokens with one id each"),
        ("vocab.json", json.dumps({"ab": 0, "a": 1, "b": 2, "12": 3, "1": 4, "2": 5}), "lacks 205 of the 209 bytes"),
    ],
)
def test_tables_that_would_lose_text_are_refused(tmp_path: Path, name: str, content: str, problem: str) -> None:
    write_tables(tmp_path, {"model_type": "gpt2", "eos_token_id": 12})
    pairs = [(a, b) for a in "abcde" for b in "fgh1"]
    vocabulary = {**VOCABULARY, **{a + b: len(VOCABULARY) + number for number, (a, b) in enumerate(pairs)}}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(["a b", "1 2", *(f"{a} {b}" for a, b in pairs)]))
    assert load_tokenizer(str(tmp_path)).encode("afab") == [len(VOCABULARY), 10]
    (tmp_path / name).write_text(content)
    if name == "vocab.json":
        (tmp_path / "merges.txt").write_text("a b\n1 2\n")
    with pytest.raises(ModelError, match=problem):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_json_that_makes_the_library_panic_is_one_line(tmp_path: Path) -> None:
    model = {
        "type": "BPE",
        "vocab": {"a": 0, "b": 0, "c": 0, "ab": 0},
        "merges": ["a b", "a c"],
        "continuing_subword_prefix": "xx",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    with pytest.raises(ModelError, match=r"tokenizer.json: not a tokenizer"):
        load_tokenizer(str(tmp_path))


def test_of_several_chat_templates_the_default_one_is_used(tmp_path: Path) -> None:
    write_tables(tmp_path, {"model_type": "gpt2", "eos_token_id": 12})
    templates = [1, {"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": templates}))
    assert load_tokenizer(str(tmp_path)).chat_template == "d"


def test_a_vocabulary_without_merges_is_refused(tmp_path: Path) -> None:
    write_tables(tmp_path, {"model_type": "gpt2", "eos_token_id": 12})
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"vocab.json but no merges.txt"):
        load_tokenizer(str(tmp_path))


def test_a_vocabulary_may_lack_bytes_that_ordinary_text_does_not_have(tmp_path: Path) -> None:
    """SmolLM2's vocabulary lacks these: they did not occur in the text that it was made from."""
    rare = [0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)]
    lacking = {byte_letters()[byte] for byte in rare}
    write_tables(tmp_path, {"model_type": "gpt2", "eos_token_id": 12})
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for t, i in VOCABULARY.items() if t not in lacking}))
    assert load_tokenizer(str(tmp_path)).encode("ab12") == [10, 11]
    (tmp_path / "vocab.json").write_text(
        json.dumps({t: i for t, i in VOCABULARY.items() if t not in {"\u0120", *lacking}})
    )
    with pytest.raises(ModelError, match="lacks 1 of the 209 bytes"):
        load_tokenizer(str(tmp_path))
