"""Documents that run on over rows: no token is lost or doubled, whatever the blocks; source trees are read as documents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mftcoder.config.load import parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared import build as building
from mftcoder.data.prepared.columns import TaskSamples
from mftcoder.data.prepared.store import prepare
from mftcoder.data.rendering.tokenization import IGNORED
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import DataError, ModelError

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config(tiny_tokenizer_dir: Path, tmp_path: Path) -> MakeConfig:
    def make(task: dict[str, Any], *, kind: Any = "pretrain", **data: Any) -> RunConfig:
        raw = {
            "model": str(tiny_tokenizer_dir),
            "tasks": {"code": {**task, "kind": kind}},
            "data": {"num_proc": 1, "max_length": 64, "cache_dir": str(tmp_path / "cache"), "val_size": 0, **data},
            "output_dir": str(tmp_path / "run"),
        }
        return parse_config(raw, origin="test")

    return make


def tokenizer_of(config: RunConfig) -> Tokenizer:
    return load_tokenizer(config.model.model_name_or_path)


def stream(samples: TaskSamples) -> list[int]:
    """All tokens in order: the first input, then every target."""
    found = [samples.sample(index) for index in range(len(samples))]
    return [int(found[0].input_ids[0]), *(int(t) for sample in found for t in sample.targets)]


TEXTS = [f"value_{n} = {n}\n" * (n * 7 % 23 + 1) for n in range(80)]


@pytest.mark.parametrize("block_bytes", [100, 700, 4 << 20])
def test_documents_run_on_without_losing_a_token(
    make_config: MakeConfig, make_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(building, "BLOCK_BYTES", block_bytes)
    config = make_config({"path": str(make_jsonl("a.jsonl", [{"content": text} for text in TEXTS]))})
    store, tokenizer = prepare(config), tokenizer_of(config)
    expected = [token for text in TEXTS for token in tokenizer.encode(text + tokenizer.eos_token)]
    samples = store.train(0)
    assert stream(samples) == expected
    assert samples.lengths.tolist() == [64] * (len(samples) - 1) + [(len(expected) - 1) % 64 or 64]
    assert samples.trained_tokens.tolist() == samples.lengths.tolist()
    counts = store.statistics[0]
    assert (counts.records, counts.samples, counts.tokens) == (len(TEXTS), len(samples), len(expected) - 1)


def test_a_row_has_the_origin_of_the_document_of_its_first_token(
    make_config: MakeConfig, make_jsonl: Callable[..., Path]
) -> None:
    path = make_jsonl("a.jsonl", [{"text": text} for text in TEXTS])
    config = make_config({"path": str(path)})
    store, tokenizer = prepare(config), tokenizer_of(config)
    sizes = [len(tokenizer.encode(text + tokenizer.eos_token)) for text in TEXTS]
    starts = np.cumsum(sizes) - sizes
    for index in range(len(store.train(0))):
        line = int(np.searchsorted(starts, 64 * index, side="right"))
        assert store.train(0).sample(index).origin == f"{path}:{line}"


def test_isolated_documents_are_samples_of_their_own_and_lose_nothing_either(
    make_config: MakeConfig, make_jsonl: Callable[..., Path]
) -> None:
    path = make_jsonl("a.jsonl", [{"text": text} for text in TEXTS])
    config = make_config({"path": str(path)}, kind={"name": "pretrain", "documents": "isolated"})
    store, tokenizer = prepare(config), tokenizer_of(config)
    samples = [store.train(0).sample(index) for index in range(len(store.train(0)))]
    for line, text in enumerate(TEXTS, start=1):
        pieces = [sample for sample in samples if sample.origin == f"{path}:{line}"]
        tokens = [int(pieces[0].input_ids[0]), *(int(t) for piece in pieces for t in piece.targets)]
        assert tokens == tokenizer.encode(text + tokenizer.eos_token)
        assert IGNORED not in tokens
    assert store.statistics[0].split > 0


def test_held_out_documents_are_in_no_training_row(make_config: MakeConfig, make_jsonl: Callable[..., Path]) -> None:
    config = make_config({"path": str(make_jsonl("a.jsonl", [{"text": t} for t in TEXTS]))}, val_size=0.2)
    store, tokenizer = prepare(config), tokenizer_of(config)
    both = [tokenizer.decode(stream(samples)) for samples in (store.train(0), store.validation(0))]
    trained, held_out = ([text for text in one.split(tokenizer.eos_token) if text] for one in both)
    assert len(held_out) == 16 and sorted(trained + held_out) == sorted(TEXTS)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three Python files, an empty one, a blank one, a hidden one, and one of another kind."""
    files = {
        "a.py": "a = 1\n", "pkg/b.py": "b = 'é'\r\n", "pkg/c.py": "c = 3", "pkg/__init__.py": "",
        "blank.py": "\n\n", ".hidden/d.py": "d = 4\n", "read.md": "# text\n",
    }  # fmt: skip
    for name, text in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path / "tree"


def test_a_source_tree_is_a_document_for_each_file(make_config: MakeConfig, tree: Path) -> None:
    config = make_config({"path": str(tree)}, kind={"name": "pretrain", "suffixes": ".py", "documents": "isolated"})
    store, tokenizer = prepare(config), tokenizer_of(config)
    found = {}
    for index in range(len(store.train(0))):
        sample = store.train(0).sample(index)
        found[sample.origin] = tokenizer.decode([int(sample.input_ids[0]), *sample.targets.tolist()])
    eos = tokenizer.eos_token
    texts = {"a.py": "a = 1\n", "pkg/b.py": "b = 'é'\r\n", "pkg/c.py": "c = 3"}
    assert found == {str(tree / name): text + eos for name, text in texts.items()}
    assert (store.statistics[0].records, store.statistics[0].untrained) == (5, 2)


def test_a_changed_file_of_a_tree_makes_another_store(make_config: MakeConfig, tree: Path) -> None:
    config = make_config({"path": str(tree)}, kind={"name": "pretrain", "suffixes": [".py", ".md"]})
    first = prepare(config)
    (tree / "a.py").write_text("a = 2\n")
    assert prepare(config).fingerprint != first.fingerprint


def test_a_file_that_is_not_utf8_is_named_with_its_byte(make_config: MakeConfig, tree: Path) -> None:
    (tree / "pkg/c.py").write_bytes(b"\n\nc = '\xff'")
    kind = {"name": "pretrain", "suffixes": ".py"}
    with pytest.raises(DataError, match=rf"{tree}/pkg/c.py: byte 8 is not UTF-8"):
        prepare(make_config({"path": str(tree)}, kind=kind))
    store = prepare(make_config({"path": str(tree)}, kind=kind, on_error="skip"))
    assert store.statistics[0].skipped == 1 and str(tree / "pkg/c.py") in store.skipped[0]


def test_validation_files_inside_a_tree_are_not_trained(make_config: MakeConfig, tree: Path) -> None:
    task = {"path": str(tree), "validation": str(tree / "pkg")}
    store = prepare(make_config(task, kind={"name": "pretrain", "suffixes": ".py"}))
    text = tokenizer_of(make_config(task)).decode(stream(store.train(0)))
    assert "a = 1" in text and "b = " not in text and store.statistics[0].validation_samples == 1


def test_no_template_is_needed_for_documents(
    make_config: MakeConfig, make_jsonl: Callable[..., Path], tiny_tokenizer_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((tiny_tokenizer_dir / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    config = make_config({"path": str(make_jsonl("a.jsonl", [{"text": text} for text in TEXTS]))})
    config = config.model_copy(update={"model": config.model.model_copy(update={"model_name_or_path": str(folder)})})
    assert prepare(config).statistics[0].records == len(TEXTS)


def test_fim_without_markers_is_refused_before_a_file_is_tokenized(
    make_config: MakeConfig, make_jsonl: Callable[..., Path]
) -> None:
    path = make_jsonl("a.jsonl", [{"text": text} for text in TEXTS])
    with pytest.raises(ModelError, match="has no tokens for fill-in-the-middle"):
        prepare(make_config({"path": str(path)}, kind={"name": "pretrain", "fim_rate": 0.5}))
