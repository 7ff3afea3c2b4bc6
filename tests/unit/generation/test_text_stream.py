"""Tokens become the text of the whole, whatever they cut in two."""

from pathlib import Path

import pytest

from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.generation.text_stream import TextStream

TEXT = "def grüße(名前):\n    return '🙂' # <end>"


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer_dir: Path) -> Tokenizer:
    return load_tokenizer(str(tiny_tokenizer_dir))


def streamed(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = (), prompt: str = "x = 1\n") -> TextStream:
    text = TextStream(tokenizer, tokenizer.encode(prompt), stop)
    for number in ids:
        text.add(number)
    return text


def test_the_text_is_that_of_all_tokens_and_never_shows_half_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    assert len(ids) > len(TEXT.split())
    for count in range(len(ids) + 1):
        text = streamed(tokenizer, ids[:count])
        assert TEXT.startswith(text.text)
    assert text.text == TEXT


def test_half_a_character_at_the_end_is_said_when_the_text_is_finished(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🙂")
    text = streamed(tokenizer, ids[:-1])
    assert text.text == "a"
    text.finish()
    assert text.text == tokenizer.decode(ids[:-1]) != "a"


def test_bytes_that_are_no_character_do_not_hold_back_what_follows(tokenizer: Tokenizer) -> None:
    half = tokenizer.encode("🙂")[0]
    assert streamed(tokenizer, [half, *tokenizer.encode("ab")]).text == tokenizer.decode([half]) + "ab"


def test_only_what_may_begin_a_stop_word_is_uncertain(tokenizer: Tokenizer) -> None:
    text = streamed(tokenizer, tokenizer.encode("x <en"), ("<end>", "\nclass"))
    assert (text.text[: text.certain], text.stopped) == ("x ", False)
    for number in tokenizer.encode("d"):
        text.add(number)
    assert text.text[: text.certain] == "x "
    for number in tokenizer.encode(">!"):
        text.add(number)
    assert (text.text, text.certain, text.stopped) == ("x ", 2, True)


def test_the_first_of_two_stop_words_in_one_token_ends_the_text(tokenizer: Tokenizer) -> None:
    assert streamed(tokenizer, tokenizer.encode("return"), ("urn", "tur")).text == "re"


def test_a_special_token_is_not_in_the_text(tokenizer: Tokenizer) -> None:
    assert streamed(tokenizer, tokenizer.encode("a<|im_start|>b")).text == "ab"


def test_the_space_before_the_first_word_stays_where_a_decoder_removes_it(sentencepiece_like_dir: Path) -> None:
    tokenizer = load_tokenizer(str(sentencepiece_like_dir))
    prompt, whole = tokenizer.encode("return"), tokenizer.encode("return value")
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :]) == "value"
    assert streamed(tokenizer, whole[len(prompt) :], prompt="return").text == " value"


def test_after_a_prompt_of_ids_that_ends_in_half_a_character_nothing_is_lost(tokenizer: Tokenizer) -> None:
    first, *rest = tokenizer.encode("🙂")
    text = TextStream(tokenizer, [first])
    for number in [*rest, *tokenizer.encode("ab")]:
        text.add(number)
    assert text.text.endswith("ab")


def test_the_tail_is_held_back_and_dropped_only_before_the_eos_token(tokenizer: Tokenizer) -> None:
    for ended, expected in ((True, "a\n\nb\n"), (False, "a\n\nb\n\n")):
        text = TextStream(tokenizer, [], tail="\n")
        shown = ""
        for number in tokenizer.encode("a\n\nb\n\n"):
            text.add(number)
            assert text.text[: text.certain].startswith(shown)
            shown = text.text[: text.certain]
        text.finish(ended=ended)
        assert text.text == expected
        assert expected.startswith(shown)
