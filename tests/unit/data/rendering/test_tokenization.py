import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from mftcoder.data.rendering.tokenization import Segment, Tokens, encode_segments, fit, to_sample
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import ModelError


@pytest.fixture(scope="module")
def byte_level(tiny_tokenizer_dir: Path) -> Tokenizer:
    return load_tokenizer(str(tiny_tokenizer_dir))


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Like Llama 2's tokenizer: it puts a space before the first word."""
    folder = tmp_path_factory.mktemp("metaspace")
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    special = [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    alphabet = [*map(chr, range(32, 127)), "\n", "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["return the sum of two numbers\n\n  return a + b"] * 9, trainer)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return load_tokenizer(str(folder))


def tokens_of(tokenizer: Tokenizer, *pieces: tuple[str, bool]) -> Tokens:
    return encode_segments(tokenizer, [[Segment(text, trained) for text, trained in pieces]])[0]


TRICKY = [
    ("Question:", " answer"),
    ("Answer:\n", "\n  indented"),
    ("def f(", "x)"),
    ("a ", " b"),
    ("re", "turn"),
    ("<s>bot\n", "x"),
]


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
@pytest.mark.parametrize(("prompt", "answer"), TRICKY)
def test_a_prompt_has_the_tokens_of_inference(
    kind: str, prompt: str, answer: str, request: pytest.FixtureRequest
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    tokens = tokens_of(tokenizer, (prompt, False), (answer + tokenizer.eos_token, True))
    alone = tokenizer.encode(prompt)
    assert tokens.ids[: len(alone)].tolist() == alone
    assert tokens.trained.tolist() == [False] * len(alone) + [True] * (len(tokens.ids) - len(alone))
    assert tokenizer.decode(tokens.ids.tolist()) == prompt + answer + tokenizer.eos_token


@given(st.lists(st.tuples(st.text(min_size=1, max_size=20), st.booleans()), min_size=1, max_size=6))
def test_no_token_crosses_a_border_and_no_text_is_lost(pieces: list[tuple[str, bool]]) -> None:
    tokenizer = _tokenizer[0]
    tokens = tokens_of(tokenizer, *pieces)
    assert tokenizer.decode(tokens.ids.tolist()) == "".join(text for text, _ in pieces)
    start = 0
    for text, trained in pieces:
        length = len(tokenizer.encode(text))
        assert tokenizer.decode(tokens.ids[start : start + length].tolist()) == text
        assert (tokens.trained[start : start + length] == trained).all()
        start += length


_tokenizer: list[Tokenizer] = []


@pytest.fixture(autouse=True, scope="module")
def _for_properties(byte_level: Tokenizer) -> None:
    _tokenizer[:] = [byte_level]


def test_a_chat_has_the_tokens_of_the_whole_text(byte_level: Tokenizer) -> None:
    turns = (
        "<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n",
        "1 + 1<|im_end|>",
        "\n<|im_start|>user\n",
        "So?<|im_end|>",
    )
    tokens = tokens_of(byte_level, *((text, index % 2 == 1) for index, text in enumerate(turns)))
    assert tokens.ids.tolist() == byte_level.encode("".join(turns))


def test_a_space_that_a_tokenizer_puts_before_the_first_word_does_not_enter_an_answer(metaspace: Tokenizer) -> None:
    assert not metaspace.encodes_piecewise
    tokens = tokens_of(metaspace, ("sum of\n", False), ("return a</s>", True), ("\n", False), ("return b</s>", True))
    assert tokens.ids.tolist() == metaspace.encode("sum of\nreturn a</s>\nreturn b</s>")


def numbered(flags: str) -> Tokens:
    """Tokens 0, 1, 2, ...; 'x' marks the trained ones."""
    return Tokens(np.arange(len(flags), dtype=np.int32), np.array([flag == "x" for flag in flags]))


def test_the_shift_of_the_docstring() -> None:
    sample = to_sample(Tokens(np.array([7, 8, 9], np.int32), np.array([False, True, True])), task=0, origin="x:1")
    assert (sample.input_ids.tolist(), sample.targets.tolist()) == ([7, 8], [8, 9])
    assert sample.input_ids.dtype == sample.targets.dtype == np.int32


def test_positions_after_the_last_trained_target_are_left_out() -> None:
    (piece,) = fit(numbered("..x.x..."), 100, "drop").pieces
    sample = to_sample(piece, task=0, origin="x:1")
    assert sample.input_ids.tolist() == [0, 1, 2, 3]
    assert sample.targets.tolist() == [-100, 2, -100, 4]


@pytest.mark.parametrize(
    ("over_length", "expected"),
    [("truncate", [[0, 1, 2, 3, 4]]), ("drop", []), ("split", [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [8, 9]])],
)
def test_a_sample_longer_than_the_limit(over_length: str, expected: list[list[int]]) -> None:
    fitted = fit(numbered("..xxxxxxxx.."), 4, over_length)  # type: ignore[arg-type]
    assert [piece.ids.tolist() for piece in fitted.pieces] == expected
    assert (fitted.truncated, fitted.dropped, fitted.split) == tuple(
        over_length == what for what in ("truncate", "drop", "split")
    )


def test_splitting_trains_every_target_exactly_once() -> None:
    tokens = numbered(".xx..xxxxx....xxx.x")
    trained = [int(id) for piece in fit(tokens, 3, "split").pieces for id in piece.ids[1:][piece.trained[1:]]]
    assert trained == [1, 2, 5, 6, 7, 8, 9, 14, 15, 16, 18]


@pytest.mark.parametrize(("flags", "over_length"), [("......", "drop"), ("x.....", "drop"), ("......xx", "truncate")])
def test_nothing_trained_within_the_limit_is_counted(flags: str, over_length: str) -> None:
    fitted = fit(numbered(flags), 4, over_length)  # type: ignore[arg-type]
    assert fitted.untrained and not fitted.pieces


def changed(folder: Path, target: Path, **settings: object) -> str:
    shutil.copytree(folder, target)
    path = target / "tokenizer_config.json"
    kept = {key: value for key, value in (json.loads(path.read_text()) | settings).items() if value is not None}
    path.write_text(json.dumps(kept))
    return str(target)


def test_a_tokenizer_knows_its_special_tokens(byte_level: Tokenizer) -> None:
    assert byte_level.backend.id_to_token(byte_level.eos_id) == byte_level.eos_token == "<|im_end|>"
    assert byte_level.vocab_size == byte_level.backend.get_vocab_size(with_added_tokens=True)
    assert not byte_level.adds_bos and byte_level.encodes_piecewise


def test_the_fingerprint_changes_with_the_files(
    tiny_tokenizer_dir: Path, tmp_path: Path, byte_level: Tokenizer
) -> None:
    assert load_tokenizer(changed(tiny_tokenizer_dir, tmp_path / "same")).fingerprint != ""
    other = load_tokenizer(changed(tiny_tokenizer_dir, tmp_path / "other", chat_template="{{ messages }}"))
    assert other.fingerprint != byte_level.fingerprint
    copy = load_tokenizer(str(shutil.copytree(tiny_tokenizer_dir, tmp_path / "copy")))
    assert copy.fingerprint == byte_level.fingerprint


@pytest.mark.parametrize("eos", [2, [2, 3]])
def test_the_eos_token_may_come_from_the_models_config(tiny_tokenizer_dir: Path, tmp_path: Path, eos: object) -> None:
    folder = changed(tiny_tokenizer_dir, tmp_path / "by-id", eos_token=None)
    (Path(folder) / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert load_tokenizer(folder).eos_token == "<|im_start|>"


def test_a_template_file_has_priority_over_the_settings(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    folder = changed(tiny_tokenizer_dir, tmp_path / "file")
    (Path(folder) / "chat_template.jinja").write_text("{{ 'file' }}")
    assert load_tokenizer(folder).chat_template == "{{ 'file' }}"


def test_a_tokenizer_without_an_eos_token_is_refused(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it has no EOS token"):
        load_tokenizer(changed(tiny_tokenizer_dir, tmp_path / "none", eos_token=None))
    with pytest.raises(ModelError, match="its EOS token '<end>' is not in its vocabulary"):
        load_tokenizer(changed(tiny_tokenizer_dir, tmp_path / "foreign", eos_token="<end>"))


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_tokenizer(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="it holds no tokenizer"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="not a tokenizer"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(ModelError, match="is a file"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
