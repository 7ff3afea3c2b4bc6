"""The bytes of tokens, put together, are the bytes of the text."""

from pathlib import Path

import pytest

from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.data.tokenizers.word_completion import token_bytes

TEXT = "def grüße(名前):\n    return '🙂'"


@pytest.mark.parametrize("fixture", ["tiny_tokenizer_dir", "sentencepiece_like_dir"])
def test_bytes_of_tokens_make_the_text(fixture: str, request: pytest.FixtureRequest) -> None:
    tokenizer = load_tokenizer(str(request.getfixturevalue(fixture)))
    known = token_bytes(tokenizer)
    found = b"".join(known[number] for number in tokenizer.encode(TEXT))
    assert found.removeprefix(b" ").decode() == TEXT


def test_special_tokens_have_none(tiny_tokenizer_dir: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_tokenizer_dir))
    known = token_bytes(tokenizer)
    assert [number in known for number in tokenizer.encode("<|im_start|>x")] == [False, True]
