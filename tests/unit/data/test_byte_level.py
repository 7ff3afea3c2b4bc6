"""Folders with vocab.json and merges.txt are cut as their family cuts text, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from mftcoder.data.tokenizer import load_tokenizer
from mftcoder.errors import ModelError

VOCABULARY = {**{letter: number for number, letter in enumerate("abcdefgh12")}, "ab": 10, "12": 11, "<|endoftext|>": 12}


def write_tables(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n1 2\n")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("family", "ids"), [("gpt2", [10, 11, 12]), ("qwen2", [10, 8, 9, 12]), ("starcoder2", [10, 8, 9, 12])]
)
def test_a_vocabulary_is_used_with_the_cut_of_its_family(tmp_path: Path, family: str, ids: list[int]) -> None:
    tokenizer = load_tokenizer(str(write_tables(tmp_path, {"model_type": family, "eos_token_id": 12})))
    assert tokenizer.encode("ab12<|endoftext|>") == ids
    assert tokenizer.eos_token == "<|endoftext|>"


def test_special_tokens_of_the_settings_are_found_in_a_text(tmp_path: Path) -> None:
    write_tables(tmp_path, {"model_type": "qwen2"})
    settings = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "added_tokens.json").write_text('{"<|im_start|>": 13, "<|im_end|>": 14}')
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode("<|im_start|>ab<|im_end|>") == [13, 10, 14]
    assert tokenizer.eos_id == 14


def test_a_family_whose_cut_is_not_known_is_refused(tmp_path: Path) -> None:
    write_tables(tmp_path, {"model_type": "borg", "eos_token_id": 12})
    message = r"how a model of type 'borg' cuts text is not known here. Set model.tokenizer_name_or_path"
    with pytest.raises(ModelError, match=message):
        load_tokenizer(str(tmp_path))


def test_merges_of_another_vocabulary_are_one_line(tmp_path: Path) -> None:
    write_tables(tmp_path, {"model_type": "gpt2", "eos_token_id": 12})
    (tmp_path / "merges.txt").write_text("x y\n")
    with pytest.raises(ModelError, match="its tokenizer cannot be read, it may be damaged"):
        load_tokenizer(str(tmp_path))


def test_a_vocabulary_without_merges_is_refused(tmp_path: Path) -> None:
    write_tables(tmp_path, {"model_type": "gpt2", "eos_token_id": 12})
    (tmp_path / "merges.txt").unlink()
    with pytest.raises(ModelError, match=r"vocab.json but no merges.txt"):
        load_tokenizer(str(tmp_path))
