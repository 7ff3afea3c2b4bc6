"""The word encoder gives the tokenizer's own ids, for the splitting rules of code models."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from mftcoder.data.tokenizers.fast_bpe import WordEncoder

QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3 = QWEN_2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


KINDS = {
    "GPT-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "SmolLM": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    "Qwen 2": split(QWEN_2),
    "Llama 3": split(LLAMA_3),
    "words only": split(r"[a-z]+"),
}


def train(kind: pre_tokenizers.PreTokenizer, *special: AddedToken) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = kind
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    added = [AddedToken(token, special=True, normalized=False) for token in ("<s>", "<|im_end|>", "<|im_end|>>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*added, *special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    return tokenizer


TRAINED = {name: train(kind) for name, kind in KINDS.items()}
ENCODERS = {name: WordEncoder.of(tokenizer) for name, tokenizer in TRAINED.items()}
code = st.lists(
    st.sampled_from(["def ", "x", "  ", "\n", "\r\n", "\t", "1234", "It's", "'LL", "<s>", "<|im_end|>", ">", "__", "(", "é", "数", "\x1c", "\x85"])
).map("".join)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(code | st.text(st.characters(codec="ascii")) | st.text(), max_size=5))
def test_any_text_has_the_ids_that_the_tokenizer_gives(kind: str, texts: list[str]) -> None:
    encoder, tokenizer = ENCODERS[kind], TRAINED[kind]
    assert encoder is not None
    expected = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in encoder.encode(texts)] == expected


@pytest.mark.parametrize(
    "kind",
    [
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Whitespace(),
        split(r"\p{Han}+"),
        split(r"(a|b)"),
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    ],
)
def test_a_tokenizer_with_another_splitting_rule_has_no_word_encoder(kind: pre_tokenizers.PreTokenizer) -> None:
    assert WordEncoder.of(train(kind)) is None


def test_special_flags_normalizers_and_models_have_no_word_encoder() -> None:
    plain = KINDS["GPT-2"]
    assert WordEncoder.of(train(plain, AddedToken("<pad>", rstrip=True))) is None
    lower = train(plain)
    lower.normalizer = normalizers.Lowercase()
    assert WordEncoder.of(lower) is None
    description = json.loads(train(plain).to_str())
    description["model"]["dropout"] = 0.1
    assert WordEncoder.of(tokenizers.Tokenizer.from_str(json.dumps(description))) is None
