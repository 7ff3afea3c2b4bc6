"""The fill-in-the-middle format of a tokenizer is the one whose tokens it has, and the pieces of a text come back in each order."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from mftcoder.data.tokenizers.fim import FORMATS, FimFormat, fim_format, marker_id
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import ModelError

WithTokens = Callable[[FimFormat], Path]


@pytest.fixture
def with_tokens(tiny_tokenizer_dir: Path, tmp_path: Path) -> WithTokens:
    """A copy of the tiny tokenizer whose vocabulary also has the markers of a format."""

    def copy(fim: FimFormat) -> Path:
        backend = Tokenizer.from_file(str(tiny_tokenizer_dir / "tokenizer.json"))
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in fim.tokens])
        folder = tmp_path / fim.family.split(",")[0]
        folder.mkdir()
        backend.save(str(folder / "tokenizer.json"))
        settings = json.loads((tiny_tokenizer_dir / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder

    return copy


@pytest.mark.parametrize("fim", FORMATS, ids=lambda fim: fim.family)
def test_the_format_is_found_by_the_vocabulary(fim: FimFormat, with_tokens: WithTokens) -> None:
    tokenizer = load_tokenizer(str(with_tokens(fim)))
    assert fim_format(tokenizer) == fim
    assert [tokenizer.encode(token) for token in fim.tokens] == [[marker_id(tokenizer, token)] for token in fim.tokens]


def test_a_vocabulary_without_markers_is_refused_in_one_line(tiny_tokenizer_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokens for fill-in-the-middle.*Set kind\.fim_rate: 0") as error:
        fim_format(load_tokenizer(str(tiny_tokenizer_dir)))
    assert "\n" not in str(error.value)


def test_the_orders_are_the_published_ones() -> None:
    qwen, codestral = FORMATS[0], FORMATS[-1]
    assert "".join(qwen.arrange("p", "m", "s", "psm")) == "<|fim_prefix|>p<|fim_suffix|>s<|fim_middle|>m"
    assert "".join(qwen.arrange("p", "m", "s", "spm")) == "<|fim_prefix|><|fim_suffix|>s<|fim_middle|>pm"
    assert {"".join(codestral.arrange("p", "m", "s", order)) for order in ("psm", "spm")} == {"[SUFFIX]s[PREFIX]pm"}
    deepseek = FORMATS[3].arrange("p", "m", "s", "psm")
    assert "".join(deepseek) == "<｜fim▁begin｜>p<｜fim▁hole｜>s<｜fim▁end｜>m"
