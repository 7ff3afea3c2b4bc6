"""`mft prepare --format megatron`: what it writes is read again as the same samples, and what does not fit the model is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mftcoder.app.data.prepare import check_megatron, prepare, write_megatron
from mftcoder.config.load import parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared.columns import TaskSamples
from mftcoder.data.records.megatron import TokenFile, write_token_file
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import ConfigError, DataError

MakeConfig = Callable[..., RunConfig]
TEXTS = [f"value_{number} = {number}\n" * (number % 40 + 1) for number in range(60)]


@pytest.fixture
def make_config(tiny_tokenizer_dir: Path, tmp_path: Path) -> MakeConfig:
    def make(task: dict[str, Any], model: Path = tiny_tokenizer_dir, **kind: Any) -> RunConfig:
        raw = {
            "model": str(model),
            "tasks": {"code": {"kind": {"name": "pretrain", **kind}, **task}},
            "data": {"num_proc": 1, "max_length": 64, "val_size": 0, "cache_dir": str(tmp_path / "cache")},
            "output_dir": str(tmp_path / "run"),
        }
        return parse_config(raw, origin="test")

    return make


def content(samples: TaskSamples) -> list[Any]:
    return [
        (one.input_ids.tolist(), one.targets.tolist()) for one in (samples.sample(at) for at in range(len(samples)))
    ]


@pytest.mark.parametrize("documents", ["packed", "isolated"])
def test_written_token_files_are_read_as_the_same_samples(
    make_config: MakeConfig, make_jsonl: Callable[..., Path], tmp_path: Path, documents: str
) -> None:
    source = make_jsonl("texts.jsonl", [{"text": text} for text in TEXTS])
    given = make_jsonl("held_out.jsonl", [{"text": "held out\n" * 30}])
    first = prepare(make_config({"path": str(source), "validation": str(given)}, documents=documents))
    train, validation = write_megatron(first, tmp_path / "out")
    assert (train.index.name, validation.index.name) == ("code_input_ids.idx", "code_validation_input_ids.idx")
    read = {"path": str(tmp_path / "out" / "code_input_ids"), "validation": str(validation.index)}
    second = prepare(make_config(read, documents=documents))
    assert content(second.store.train(0)) == content(first.store.train(0))
    assert content(second.store.validation(0)) == content(first.store.validation(0))
    assert second.store.statistics[0].tokens == first.store.statistics[0].tokens
    assert second.store.train(0).sample(0).origin == f"{train.index}:1"
    sizes = np.diff(TokenFile.open(train.index).ends, prepend=0)
    assert train.documents == len(sizes) and train.tokens == sizes.sum()
    if documents == "packed":
        assert set(sizes[:-1]) == {64}  # rows, as the published offline tokenisation has them
    else:
        assert len(sizes) == len(TEXTS) and sizes.max() > 64  # whole documents, however long


def test_rows_of_another_length_hold_the_same_tokens(make_config: MakeConfig, tmp_path: Path) -> None:
    """Files with rows of 50 tokens become rows of 64 positions, without a token lost."""
    ids = np.arange(1000) % 900
    tokenizer = load_tokenizer(make_config({"path": "x"}).model.model_name_or_path)
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
    write_token_file(tmp_path / "rows", np.split(ids, 20), vocabulary)
    samples = prepare(make_config({"path": str(tmp_path / "rows.bin")})).store.train(0)
    stream = [one for inputs, _ in content(samples) for one in inputs]
    assert stream == ids[:-1].tolist() and samples.lengths.max() == 64


def token_file(folder: Path, ids: list[int], *, keep_vocabulary: bool = False) -> Path:
    write_token_file(folder / "foreign", [np.array(ids)], {"a": 0, "z": 999})
    if not keep_vocabulary:
        (folder / "foreign.json").unlink()
    return folder / "foreign.idx"


def test_tokens_of_another_tokenizer_are_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    index = token_file(tmp_path, [1, 2, 3], keep_vocabulary=True)
    with pytest.raises(DataError, match="its tokens are of another vocabulary than that of"):
        prepare(make_config({"path": str(index)}))


def test_an_id_beyond_the_vocabulary_is_refused_with_its_place(make_config: MakeConfig, tmp_path: Path) -> None:
    index = token_file(tmp_path, [3, 4, 5000, 6])
    with pytest.raises(DataError, match=r"foreign.idx:1: token 3 has the id 5000; the tokenizer's vocabulary has \d+"):
        prepare(make_config({"path": str(index)}))


def test_a_file_without_eos_tokens_is_warned_of(
    make_config: MakeConfig, tmp_path: Path, said: Callable[[], str]
) -> None:
    config = make_config({"path": str(token_file(tmp_path, [4, 5, 6]))})
    prepare(config)
    assert "foreign.idx: has no EOS token of" in said()
    eos = load_tokenizer(config.model.model_name_or_path).eos_id
    prepare(make_config({"path": str(token_file(tmp_path, [4, 5, eos]))}))
    assert said() == ""


def test_tokens_cannot_be_rearranged(make_config: MakeConfig, tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    config = make_config({"path": str(token_file(tmp_path, [4, 5]))}, fim_rate=0.5)
    with pytest.raises(DataError, match=r"has tokens, not texts, so kind.fim_rate has no effect on it. Set it to 0"):
        prepare(config)


def test_tasks_of_other_kinds_are_refused_before_any_work(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    tasks = {"chat": "nowhere", "pairs": {"path": "nowhere", "kind": "dpo"}, "code": {"path": "x", "kind": "pretrain"}}
    raw = {"model": str(tiny_tokenizer_dir), "tasks": tasks, "output_dir": str(tmp_path)}
    with pytest.raises(ConfigError) as caught:
        check_megatron(parse_config(raw, origin="test"))
    assert [problem[:26] for problem in caught.value.problems] == [
        "tasks.chat: has kind sft. ",
        "tasks.pairs: has kind dpo.",
    ]


def test_a_task_of_conversations_does_not_read_token_files(
    make_config: MakeConfig, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    raw = {"model": str(tiny_tokenizer_dir), "tasks": {"chat": str(token_file(tmp_path, [1]))}, "output_dir": "run"}
    with pytest.raises(DataError, match=r"foreign.idx: task 'chat': is not a .jsonl or .jsonl.gz file"):
        prepare(parse_config(raw, origin="test"))


def test_broken_links_of_a_source_tree_are_left_out_and_counted(
    make_config: MakeConfig, tmp_path: Path, said: Callable[[], str]
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.py").write_text("a = 1\n" * 40)
    for name in ("b.py", "c.py"):
        (tree / name).symlink_to(tree / "nowhere.py")
    config = make_config({"path": str(tree)}, suffixes=".py")
    assert prepare(config).store.statistics[0].records == 1
    assert f"{tree}: task 'code': leaves out 2 broken links, the first is {tree}/b.py" in said()
    (tree / "a.py").unlink()
    with pytest.raises(DataError, match=r"holds no .* file \(2 broken links and 0 other files\)"):
        prepare(config)


def test_a_broken_link_to_records_still_ends_the_run(make_config: MakeConfig, tmp_path: Path) -> None:
    """A file of records was named on purpose: without it the task would be another one."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}))
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"b.jsonl: task 'code': is a broken link"):
        prepare(make_config({"path": str(tmp_path)}))
