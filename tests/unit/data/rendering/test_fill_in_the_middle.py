"""The five published formats of fill in the middle, each found by its tokens."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken

from mftcoder.data.rendering.fill_in_the_middle import end_tokens, find_format, render_fill
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer

EXPECTED = {
    "Qwen": (
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        "<|fim_prefix|>a = <|fim_suffix|> + c\n<|fim_middle|>",
    ),
    "StarCoder": (("<fim_prefix>", "<fim_suffix>", "<fim_middle>"), "<fim_prefix>a = <fim_suffix> + c\n<fim_middle>"),
    "Code Llama": (("▁<PRE>", "▁<SUF>", "▁<MID>"), "▁<PRE>a = ▁<SUF> + c\n▁<MID>"),
    "DeepSeek": (
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
        "<｜fim▁begin｜>a = <｜fim▁hole｜> + c\n<｜fim▁end｜>",
    ),
    "Codestral": (("[PREFIX]", "[SUFFIX]"), "[SUFFIX] + c\n[PREFIX]a = "),
}


def with_tokens(folder: Path, out: Path, *tokens: str) -> Tokenizer:
    """The tokenizer of a folder with more special tokens."""
    backend = load_tokenizer(str(folder)).backend
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    backend.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    return load_tokenizer(str(out))


@pytest.mark.parametrize("name", EXPECTED)
def test_a_vocabulary_with_the_tokens_of_a_format_gets_that_format(
    tiny_tokenizer_dir: Path, tmp_path: Path, name: str
) -> None:
    tokens, text = EXPECTED[name]
    tokenizer = with_tokens(tiny_tokenizer_dir, tmp_path, *tokens)
    form = find_format(tokenizer)
    assert form is not None
    found = render_fill(form, tokenizer, "a = ", " + c\n")
    assert tokenizer.decode([*found.before, *found.prefix, *found.after]) == text
    assert {tokenizer.backend.token_to_id(token) for token in tokens} == end_tokens(form, tokenizer)


def test_a_vocabulary_without_all_tokens_of_a_format_has_none(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    assert find_format(load_tokenizer(str(tiny_tokenizer_dir))) is None
    assert find_format(with_tokens(tiny_tokenizer_dir, tmp_path, "<fim_prefix>", "<fim_suffix>")) is None


def test_other_files_come_first_each_after_the_token_for_files(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    tokenizer = with_tokens(tiny_tokenizer_dir, tmp_path, *EXPECTED["Qwen"][0], "<|file_sep|>")
    form = find_format(tokenizer)
    assert form is not None
    found = render_fill(form, tokenizer, "p", "s", [("a.py", "x\n"), ("b.py", "y")])
    expected = "<|file_sep|>a.py\nx\n<|file_sep|>b.py\ny\n<|file_sep|><|fim_prefix|>"
    assert tokenizer.decode(found.before) == expected
    assert tokenizer.backend.token_to_id("<|file_sep|>") in end_tokens(form, tokenizer)


def test_a_suffix_gets_no_space_where_a_first_word_does(sentencepiece_like_dir: Path, tmp_path: Path) -> None:
    tokenizer = with_tokens(sentencepiece_like_dir, tmp_path, *EXPECTED["Code Llama"][0])
    form = find_format(tokenizer)
    assert form is not None
    found = render_fill(form, tokenizer, "return", "value")
    pieces = [tokenizer.backend.id_to_token(number) for number in [*found.before, *found.prefix, *found.after]]
    assert "".join(pieces) == "▁<PRE>▁return▁<SUF>value▁<MID>"


def test_a_tokenizer_that_begins_a_text_with_bos_does_so_here(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    tokenizer = with_tokens(tiny_tokenizer_dir, tmp_path, *EXPECTED["DeepSeek"][0])
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [tokenizer.bos_id], "tokens": ["<s>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(tmp_path))
    form = find_format(tokenizer)
    assert form is not None
    assert render_fill(form, tokenizer, "p", "s").before[0] == tokenizer.bos_id
