"""Folders with only tokenizer.model give the ids of the sentencepiece library for the known families; the others are refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import ModelError
from mftcoder.jsonl import read_jsonl
from tests.conftest import REPOSITORY

spm = pytest.importorskip("sentencepiece")

NEAR = [REPOSITORY / "src/mftcoder/data/tokenizers/fast_bpe.py", *sorted((REPOSITORY / "docs").glob("[a-d]*.md"))]
SHARED = REPOSITORY.parent / "shared" / "data"
CONTROL = ("<s>", "</s>", "<unk>", "<pad>")
RUNS = ["\u2581" * length for length in range(2, 17)]
FAMILIES: dict[str, dict[str, Any]] = {  # model_type -> how such a vocabulary is trained
    "llama": {},
    "mistral": {"user_defined_symbols": ["[REFERENCE_0]", "[REFERENCE_1]"]},
    "mixtral": {"vocab_size": 700},
    "phi3": {},
    "gemma": {"add_dummy_prefix": False, "user_defined_symbols": ["<start_of_turn>", "\n\n", "\t\t", *RUNS], "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
    "baichuan": {"add_dummy_prefix": False, "user_defined_symbols": ["<reserved_106>"]},
    "chatglm": {"user_defined_symbols": ["<|blank|>"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    chinese = "请写一个函数，返回两个数的和。\n" * 20
    path.write_text("".join(near.read_text(encoding="utf-8") for near in NEAR) + chinese, encoding="utf-8")
    return path


def write_model(folder: Path, corpus: Path, **options: Any) -> Any:
    """Train a tokenizer.model in `folder`; returns the library's processor for it."""
    folder.mkdir(parents=True, exist_ok=True)
    usual = {
        "vocab_size": 800, "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "num_threads": 1,
        "remove_extra_whitespaces": False, "minloglevel": 2,
    }  # fmt: skip
    spm.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(folder / "tokenizer"), **{**usual, **options})
    (folder / "tokenizer.vocab").unlink()
    return spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def write_family(folder: Path, corpus: Path, family: str) -> Any:
    processor = write_model(folder, corpus, **FAMILIES[family])
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    if family == "chatglm":
        (folder / "tokenization_chatglm.py").write_text("special = ['sop', '<|user|>']")
    return processor


def differing(tokenizer: Tokenizer, processor: Any, texts: list[str]) -> list[str]:
    """Texts with other ids. The library finds no special tokens in a text, so texts with one are left out."""
    plain = [text for text in texts if not any(token in text for token in (*CONTROL, *tokenizer.special_tokens))]
    assert len(plain) > len(texts) / 2
    return [text for text in plain if tokenizer.encode(text) != processor.encode(text)]


def near_texts() -> list[str]:
    whole = [path.read_text(encoding="utf-8") for path in NEAR]
    lines = [line for text in whole for line in text.splitlines(keepends=True)]
    odd = [
        " " * 41,
        "a  [REFERENCE_1]  b",
        "x<reserved_106> y",
        "\t\t\n\n\n z",
        "é e\u0301 \ufb01 \u3000 🙂",
        "▁ x ▁▁y",
    ]
    return [*lines, *whole, *odd]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_the_ids_of_the_library_and_its_text_back(tmp_path: Path, corpus: Path, family: str) -> None:
    processor = write_family(tmp_path, corpus, family)
    tokenizer = load_tokenizer(str(tmp_path))
    assert differing(tokenizer, processor, near_texts()) == []
    code = "def f(x):\n\n    return  {'a':  x}\t# 12\n"
    assert tokenizer.decode(tokenizer.encode(code)) == code
    assert tokenizer.eos_id == processor.eos_id()
    assert tokenizer.encode(f"x{tokenizer.eos_token}")[-1] == processor.eos_id()
    assert tokenizer.adds_bos == (family != "chatglm")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmarks' files are not here")
def test_real_benchmark_texts_get_the_ids_of_the_library(tmp_path: Path, corpus: Path) -> None:
    records = [
        record
        for path in sorted(SHARED.rglob("*.jsonl*"))
        for _, (_, record) in zip(range(20), read_jsonl(path), strict=False)
        if isinstance(record, dict)
    ]
    texts = [value for record in records for value in record.values() if isinstance(value, str)]
    for family in ("llama", "gemma"):
        processor = write_family(tmp_path / family, corpus, family)
        assert differing(load_tokenizer(str(tmp_path / family)), processor, texts) == []


def test_without_a_config_the_class_of_the_tokenizer_gives_the_family(tmp_path: Path, corpus: Path) -> None:
    processor = write_model(tmp_path, corpus)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False, "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ x }}"}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert differing(tokenizer, processor, near_texts()) == []
    assert not tokenizer.adds_bos
    assert tokenizer.chat_template == "{{ x }}"


def test_added_tokens_keep_their_ids_and_their_whitespace(tmp_path: Path, corpus: Path) -> None:
    write_family(tmp_path, corpus, "phi3")
    added = {
        "800": {"content": "<|end|>", "special": True, "rstrip": True},
        "801": {"content": "<|tag|>", "special": False},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "added_tokens_decoder": added}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.eos_id == 800
    assert tokenizer.encode("<|tag|><|end|>  ") == [801, 800]


def test_an_added_token_that_cannot_have_its_id_is_refused(tmp_path: Path, corpus: Path) -> None:
    write_family(tmp_path, corpus, "llama")
    (tmp_path / "added_tokens.json").write_text('{"<|tag|>": 900}')
    with pytest.raises(ModelError, match=r'its added token "<\|tag\|>" has the id 900, but would get 800'):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(("legacy", "behind_the_token"), [(True, "▁b"), (False, "b")])
def test_the_space_after_a_special_token_follows_the_settings(
    tmp_path: Path, corpus: Path, legacy: bool, behind_the_token: str
) -> None:
    write_family(tmp_path, corpus, "llama")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy}))
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.backend.id_to_token(tokenizer.encode("a</s>b")[-1]) == behind_the_token


def test_chatglm_finds_its_roles_in_a_text_but_not_its_commands(tmp_path: Path, corpus: Path) -> None:
    processor = write_family(tmp_path, corpus, "chatglm")
    tokenizer = load_tokenizer(str(tmp_path))
    assert tokenizer.encode("<|user|>") == [processor.get_piece_size() + 6]
    for text in ("[gMASK] sop", "sophisticated"):
        assert tokenizer.encode(text) == processor.encode(text)
    (tmp_path / "tokenization_chatglm.py").write_text("special = ['sop']")
    assert load_tokenizer(str(tmp_path)).encode("<|user|>") == processor.encode("<|user|>")
    (tmp_path / "tokenization_chatglm.py").unlink()
    with pytest.raises(ModelError, match=r"which tells whether <\|user\|> is a token"):
        load_tokenizer(str(tmp_path))


def test_a_changed_model_in_the_same_folder_is_converted_again(tmp_path: Path, corpus: Path) -> None:
    write_family(tmp_path, corpus, "llama")
    first = load_tokenizer(str(tmp_path)).vocab_size
    write_model(tmp_path, corpus, vocab_size=700)
    assert (first, load_tokenizer(str(tmp_path)).vocab_size) == (800, 700)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # training options, config.json, message
    "an unknown family": ({}, {"model_type": "internlm"}, "the rules of model type 'internlm' are unknown"),
    "no family": ({}, {}, "the rules of model type 'None' are unknown"),
    "another kind of model": ({"model_type": "unigram", "vocab_size": 400}, {"model_type": "llama"}, "is not a byte-pair model"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_models_are_refused_with_a_remedy(tmp_path: Path, corpus: Path, case: str) -> None:
    options, config, message = REFUSED[case]
    write_model(tmp_path, corpus, **options)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"tokenizer.model: .*{message}.*Set model.tokenizer_name_or_path"):
        load_tokenizer(str(tmp_path))


def test_unknown_python_code_is_named(tmp_path: Path, corpus: Path) -> None:
    write_model(tmp_path, corpus)
    (tmp_path / "config.json").write_text('{"model_type": "internlm"}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["tokenization_internlm.X", null]}}'
    )
    with pytest.raises(ModelError, match="are in its own Python code, which is not run"):
        load_tokenizer(str(tmp_path))


def test_a_vocabulary_that_cannot_be_made_exact_is_refused(tmp_path: Path, corpus: Path) -> None:
    """All scores are equal: sentencepiece then joins the leftmost pair, which no order of merges can give."""
    from sentencepiece import sentencepiece_model_pb2 as formats

    write_family(tmp_path, corpus, "llama")
    model = formats.ModelProto()
    model.ParseFromString((tmp_path / "tokenizer.model").read_bytes())
    for piece in model.pieces:
        piece.score = 0
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"other ids than sentencepiece on \d+ of \d+ texts"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no model", b"\x0a\x05"])
def test_a_file_that_is_not_a_model_is_an_error_of_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"tokenizer.model: is not a sentencepiece model, or is truncated") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_without_the_library_the_advice_is_to_install_it(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_family(tmp_path, corpus, "llama")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModelError, match=r"needs the sentencepiece package: pip install 'mftcoder\[sentencepiece\]'"):
        load_tokenizer(str(tmp_path))
