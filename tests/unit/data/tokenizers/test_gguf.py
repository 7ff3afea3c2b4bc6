"""The tokenizer of a .gguf file gives the ids of the tokenizer that was written into it, or is refused."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import ModelError
from tests.conftest import REPOSITORY

SPECIAL = ("<|begin|>", "<|end|>", "<｜fill▁hole｜>")
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6


@functools.cache
def real_texts() -> tuple[str, ...]:
    """Lines of a source and of pages of this project, and lines in other scripts."""
    paths = [REPOSITORY / "src/mftcoder/data/tokenizers/fast_bpe.py", *sorted((REPOSITORY / "docs").glob("[a-d]*.md"))]
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines(keepends=True)]
    others = (
        "请写一个函数,返回两个数的和。12345 かな 한국어",
        "  x  12\n\n\n   y = 3333333\r\n\t\tif a:",
        "don't WE'LL I'M",
        "e\u0301\u0323 \ufb01",
    )
    return (*(line for line in lines if "<s>" not in line and "</s>" not in line), *others)


def sequence(*steps: Any) -> Any:
    return pre_tokenizers.Sequence([*steps])


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {  # tokenizer.ggml.pre -> the pre-tokenizer of the published tokenizer.json, and whether it composes characters
    "gpt-2": (GPT2, False),
    "starcoder": (sequence(DIGITS, GPT2), False),
    "smollm": (sequence(DIGITS, GPT2), False),
    "qwen2": (sequence(split(rf"{CONTRACTED}|\p{{N}}{TAIL}"), BYTES), True),
    "llama-bpe": (sequence(split(rf"{CONTRACTED}|\p{{N}}{{1,3}}{TAIL}"), BYTES), False),
    "tekken": (sequence(split(CASED), BYTES), False),
    "deepseek-coder": (
        sequence(split(r"[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), DIGITS, BYTES), False,
    ),
}  # fmt: skip


def trained(cut: Any, *, composed: bool) -> tokenizers.Tokenizer:
    """A byte-level vocabulary of 600 tokens trained with this splitting rule, then added tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.ByteLevel()
    if composed:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(real_texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken("    ", normalized=False)])
    return tokenizer


def write_bpe(path: Path, tokenizer: tokenizers.Tokenizer, *, pre: str | None, **more: Any) -> Path:
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    kinds = {**dict.fromkeys(SPECIAL, CONTROL), "    ": USER_DEFINED}
    usual = {
        "tokenizer_model": "gpt2", "tokenizer_pre": pre, "token_list": tokens, "token_types": [kinds.get(token, NORMAL) for token in tokens],
        "token_merges": [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]],
        "bos_token_id": tokenizer.token_to_id("<|begin|>"), "eos_token_id": tokenizer.token_to_id("<|end|>"),
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {**usual, **more}.items():
        if value is not None:
            getattr(writer, f"add_{name}")(value)
    return finished(writer, path)


def finished(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("pre", CUTS)
def test_each_splitting_rule_gives_the_ids_of_the_original(tmp_path: Path, pre: str) -> None:
    cut, composed = CUTS[pre]
    original = trained(cut, composed=composed)
    loaded = load_tokenizer(str(write_bpe(tmp_path / "tiny.gguf", original, pre=pre)))
    texts = [*real_texts(), "<|begin|>x = 1<|end|>\n<｜fill▁hole｜>  <|end|>    y"]
    wrong = [text for text in texts if loaded.encode(text) != original.encode(text, add_special_tokens=False).ids]
    assert wrong == []
    assert [ids.tolist() for ids in loaded.encode_batch(texts)] == [loaded.encode(text) for text in texts]
    assert loaded.decode(loaded.encode(texts[0])) == texts[0]
    assert (loaded.eos_token, loaded.bos_token) == ("<|end|>", "<|begin|>")


@pytest.mark.parametrize("pre", sorted(CUTS.keys() - {"gpt-2"}))
def test_another_splitting_rule_would_give_other_ids(pre: str) -> None:
    """Otherwise the test above would pass with any splitting rule."""
    original = trained(CUTS[pre][0], composed=False)
    expected = [original.encode(text).ids for text in real_texts()]
    original.pre_tokenizer = GPT2
    assert sum(original.encode(text).ids != ids for text, ids in zip(real_texts(), expected, strict=True)) >= 4


def test_a_vocabulary_without_an_endoftext_token_has_the_size_it_has(tmp_path: Path) -> None:
    original = trained(GPT2, composed=False)
    loaded = load_tokenizer(str(write_bpe(tmp_path / "tiny.gguf", original, pre="gpt-2")))
    assert loaded.vocab_size == original.get_vocab_size() == 604


@pytest.mark.parametrize(
    ("pre", "message"),
    [
        ("borg", r"has the unknown splitting rule 'borg' \(tokenizer.ggml.pre\)"),
        ("default", "has the unknown splitting rule 'default'"),
        (None, "does not name its splitting rule"),
    ],
)
def test_an_unknown_splitting_rule_is_refused_with_a_remedy(tmp_path: Path, pre: str | None, message: str) -> None:
    path = write_bpe(tmp_path / "tiny.gguf", trained(GPT2, composed=False), pre=pre)
    with pytest.raises(ModelError, match=rf"tiny.gguf: its tokenizer .*{message}.*Set model.tokenizer_name_or_path"):
        load_tokenizer(str(path))


@pytest.mark.parametrize(
    "more", [{"eos_token_id": 9999}, {"token_types": [NORMAL]}, {"token_merges": ["nowhere here"]}]
)
def test_tables_that_contradict_each_other_are_one_line(tmp_path: Path, more: dict[str, Any]) -> None:
    path = write_bpe(tmp_path / "tiny.gguf", trained(GPT2, composed=False), pre="gpt-2", **more)
    with pytest.raises(ModelError, match=r"tiny.gguf: its tokenizer cannot be read, it may be damaged") as caught:
        load_tokenizer(str(path))
    assert "\n" not in str(caught.value)


def test_an_unsupported_kind_of_tokenizer_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_tokenizer_model("t5")
    with pytest.raises(ModelError, match="its tokenizer is of the unsupported kind 't5'"):
        load_tokenizer(str(finished(writer, tmp_path / "tiny.gguf")))


def test_a_file_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    path = finished(gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama"), tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match=r"tiny.gguf: it holds no tokenizer. Set model.tokenizer_name_or_path"):
        load_tokenizer(str(path))


@pytest.mark.parametrize(("more", "opens"), [({}, True), ({"add_bos_token": False}, False)])
def test_llama_3_begins_a_text_with_bos_unless_the_file_turns_it_off(
    tmp_path: Path, more: dict[str, Any], opens: bool
) -> None:
    original = trained(CUTS["llama-bpe"][0], composed=False)
    path = write_bpe(tmp_path / "tiny.gguf", original, pre="llama-bpe", **more)
    assert load_tokenizer(str(path)).adds_bos is opens


def test_the_chat_template_is_copied(tmp_path: Path) -> None:
    path = write_bpe(tmp_path / "tiny.gguf", trained(GPT2, composed=False), pre="gpt-2", chat_template="{{ messages }}")
    assert load_tokenizer(str(path)).chat_template == "{{ messages }}"


def write_sentencepiece(path: Path, change: Callable[[list[float]], list[float]]) -> tuple[Path, Any]:
    spm = pytest.importorskip("sentencepiece")
    corpus = path.with_suffix(".txt")
    corpus.write_text("".join(real_texts()), encoding="utf-8")
    spm.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(path.with_suffix("")), vocab_size=900, model_type="bpe", byte_fallback=True, num_threads=1,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    processor = spm.SentencePieceProcessor(model_file=str(path.with_suffix(".model")))
    numbers = range(processor.get_piece_size())
    kinds = {0: 2, 1: CONTROL, 2: CONTROL}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([processor.id_to_piece(n) for n in numbers])
    writer.add_token_scores(change([processor.get_score(n) for n in numbers]))
    writer.add_token_types([BYTE if processor.is_byte(n) else kinds.get(n, NORMAL) for n in numbers])
    for name, number in (("bos", 1), ("eos", 2), ("unk", 0)):
        getattr(writer, f"add_{name}_token_id")(number)
    return finished(writer, path), processor


def test_a_sentencepiece_vocabulary_gives_the_librarys_ids(tmp_path: Path) -> None:
    path, processor = write_sentencepiece(tmp_path / "tiny.gguf", list)
    loaded = load_tokenizer(str(path))
    assert [text for text in real_texts() if loaded.encode(text) != processor.encode(text)] == []
    assert loaded.adds_bos


def test_scores_that_do_not_order_the_merges_are_refused(tmp_path: Path) -> None:
    path, _ = write_sentencepiece(tmp_path / "tiny.gguf", lambda scores: [-1000.0] * len(scores))
    with pytest.raises(ModelError, match="the scores of its tokenizer do not give the order of its merges"):
        load_tokenizer(str(path))
