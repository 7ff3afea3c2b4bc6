import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mftcoder.config.load import parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.data.prepared import build as building
from mftcoder.data.prepared.columns import TaskSamples
from mftcoder.data.prepared.store import Store, prepare
from mftcoder.data.rendering.tokenization import IGNORED
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import DataError

MakeJsonl = Callable[..., Path]
MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def make_config(tiny_tokenizer_dir: Path, tmp_path: Path) -> MakeConfig:
    def make(tasks: dict[str, Any], **data: Any) -> RunConfig:
        raw = {
            "model": str(tiny_tokenizer_dir),
            "tasks": tasks,
            "data": {"num_proc": 1, "max_length": 64, "cache_dir": str(tmp_path / "cache"), **data},
            "output_dir": str(tmp_path / "run"),
        }
        return parse_config(raw, origin="test")

    return make


def pair(index: object, words: int = 3) -> dict[str, Any]:
    return {"prompt": f"Question {index}?", "completion": " ".join(f"answer{index}" for _ in range(words))}


def origins(samples: TaskSamples) -> list[str]:
    return [samples.sample(index).origin for index in range(len(samples))]


def texts(config: RunConfig, samples: TaskSamples) -> list[str]:
    tokenizer = load_tokenizer(config.model.model_name_or_path)
    return sorted(tokenizer.decode(samples.sample(index).input_ids.tolist()) for index in range(len(samples)))


def content(store: Store) -> list[Any]:
    return [
        (samples.sample(index).input_ids.tolist(), samples.sample(index).targets.tolist(), samples.sample(index).origin)
        for task in range(len(store.tasks))
        for samples in (store.train(task), store.validation(task))
        for index in range(len(samples))
    ]


def test_samples_are_read_back_as_they_were_tokenized(make_config: MakeConfig, make_jsonl: MakeJsonl) -> None:
    path = make_jsonl("a.jsonl", [pair(index) for index in range(20)])
    config = make_config({"a": str(path)}, val_size=0, chat_template="chatml")
    store = prepare(config)
    samples = store.train(0)
    tokenizer = load_tokenizer(config.model.model_name_or_path)
    whole = tokenizer.encode(
        "<|im_start|>user\nQuestion 4?<|im_end|>\n<|im_start|>assistant\nanswer4 answer4 answer4<|im_end|>"
    )
    sample = samples.sample(4)
    assert sample.input_ids.tolist() == whole[:-1]
    assert sample.origin == f"{path}:5"
    answer = tokenizer.encode("answer4 answer4 answer4<|im_end|>")
    assert sample.targets.tolist() == [IGNORED] * (len(whole) - 1 - len(answer)) + answer
    assert samples.trained_tokens[4] == len(answer) and samples.lengths[4] == len(whole) - 1
    assert store.statistics[0].trained_tokens == samples.trained_tokens.sum()
    assert store.statistics[0].tokens == samples.lengths.sum()


def test_the_split_is_the_same_for_any_order_of_files_and_lines(make_config: MakeConfig, make_jsonl: MakeJsonl) -> None:
    records = [pair(index) for index in range(200)]
    one = make_config({"a": str(make_jsonl("one/all.jsonl", records).parent)}, val_size=0.1)
    random.Random(0).shuffle(records)
    make_jsonl("two/b.jsonl", records[:50])
    two = make_config({"a": str(make_jsonl("two/a.jsonl", records[50:]).parent)}, val_size=0.1)
    first, second = prepare(one), prepare(two)
    assert first.statistics[0].validation_samples == 20
    assert texts(one, first.validation(0)) == texts(two, second.validation(0))
    assert texts(one, first.train(0)) == texts(two, second.train(0))


def test_duplicates_are_never_on_both_sides_of_the_split(make_config: MakeConfig, make_jsonl: MakeJsonl) -> None:
    path = make_jsonl("a.jsonl", [pair(index % 50) for index in range(150)])
    twin = make_jsonl("b.jsonl", [pair(index) for index in range(40, 80)])
    config = make_config({"a": str(path), "b": str(twin)}, val_size=0.2)
    store = prepare(config)
    training = {text for task in (0, 1) for text in texts(config, store.train(task))}
    validation = [text for task in (0, 1) for text in texts(config, store.validation(task))]
    assert validation and not training & set(validation)
    counts = store.statistics[0]
    assert (counts.duplicates, counts.validation_samples) == (100, 10)
    assert counts.samples + counts.validation_samples + counts.overlap == 150


def test_training_records_that_are_in_given_validation_files_are_dropped(
    make_config: MakeConfig, make_jsonl: MakeJsonl
) -> None:
    make_jsonl("a/train.jsonl", [pair(index) for index in range(30)])
    held = make_jsonl("a/valid.jsonl", [pair(index) for index in range(25, 35)])
    config = make_config({"a": {"path": str(held.parent), "validation": str(held)}})
    store = prepare(config)
    counts = store.statistics[0]
    assert (counts.records, counts.samples, counts.overlap, counts.validation_samples) == (30, 25, 5, 10)
    assert all("valid.jsonl" in origin for origin in origins(store.validation(0)))


def test_limits_choose_by_the_hash_of_the_content(make_config: MakeConfig, make_jsonl: MakeJsonl) -> None:
    records = [pair(index) for index in range(100)]
    limits = {"max_val_samples": 5, "val_size": 0.5}
    one = make_config({"a": {"path": str(make_jsonl("one.jsonl", records)), "max_samples": 40}}, **limits)
    two = make_config({"a": {"path": str(make_jsonl("two.jsonl", records[::-1])), "max_samples": 40}}, **limits)
    stores = [prepare(one), prepare(two)]
    assert texts(one, stores[0].train(0)) == texts(two, stores[1].train(0))
    assert (
        stores[0].statistics[0].samples,
        stores[0].statistics[0].validation_samples,
        stores[0].statistics[0].unused,
    ) == (35, 5, 60)


def test_a_tiny_task_keeps_something_on_both_sides(make_config: MakeConfig, make_jsonl: MakeJsonl) -> None:
    two, one = make_jsonl("two.jsonl", [pair(0), pair(1)]), make_jsonl("one.jsonl", [pair(0)])
    statistics = prepare(make_config({"two": str(two)})).statistics + prepare(make_config({"one": str(one)})).statistics
    assert [(counts.samples, counts.validation_samples) for counts in statistics] == [(1, 1), (1, 0)]


@pytest.mark.parametrize("over_length", ["truncate", "drop", "split"])
def test_over_long_samples_are_counted(over_length: str, make_config: MakeConfig, make_jsonl: MakeJsonl) -> None:
    records = [pair(index, words=60 if index < 3 else 2) for index in range(10)] + [
        {"prompt": "word " * 200, "completion": "x"}
    ]
    store = prepare(make_config({"a": str(make_jsonl("a.jsonl", records))}, over_length=over_length, val_size=0))
    counts = store.statistics[0]
    assert store.train(0).lengths.max() <= 64
    assert (counts.truncated, counts.dropped) == {"truncate": (3, 0), "drop": (0, 4), "split": (0, 0)}[over_length]
    assert counts.untrained == (1 if over_length == "truncate" else 0)
    assert (counts.split > 6) == (over_length == "split")


def test_an_unchanged_config_tokenizes_nothing(make_config: MakeConfig, make_jsonl: MakeJsonl) -> None:
    config = make_config({"a": str(make_jsonl("a.jsonl", [pair(index) for index in range(9)]))})
    seen: list[tuple] = []
    first = prepare(config, on_progress=lambda *told: seen.append(told))
    title, done, total, note = seen[-1]
    assert title == "tokenizing" and done == total and note.startswith("9 records, ")
    seen.clear()
    assert prepare(config, on_progress=lambda *told: seen.append(told)).folder == first.folder and not seen


def test_everything_that_shapes_the_samples_changes_the_fingerprint(
    make_config: MakeConfig, make_jsonl: MakeJsonl, tmp_path: Path
) -> None:
    path = str(make_jsonl("a.jsonl", [pair(index) for index in range(9)]))
    changes: list[dict[str, Any]] = [
        {}, {"max_length": 65}, {"chat_template": "mftcoder"}, {"over_length": "split"}, {"train_on": "all"}, {"val_size": 0.5},
        {"max_val_samples": 1}, {"role_markers": {"user": "U", "assistant": "A"}},
    ]  # fmt: skip
    tasks: list[dict[str, Any]] = [{"a": path}, {"b": path}, {"a": {"path": path, "max_samples": 5}}]
    prints = {prepare(make_config({"a": path}, **change)).fingerprint for change in changes}
    prints |= {prepare(make_config(task)).fingerprint for task in tasks}
    assert len(prints) == len(changes) + len(tasks) - 1
    same = [{"num_proc": 2}, {"max_errors": 3}, {"packing": "none"}]
    assert len({prepare(make_config({"a": path}, **change)).fingerprint for change in same} | prints) == len(prints)


def test_a_file_changed_with_the_same_size_and_time_is_not_reused(
    make_config: MakeConfig, make_jsonl: MakeJsonl
) -> None:
    path = make_jsonl("a.jsonl", [pair(index) for index in range(9)])
    os.utime(path, ns=(10**18, 10**18))
    config = make_config({"a": str(path)}, val_size=0)
    before = prepare(config)
    path.write_bytes(path.read_bytes().replace(b"answer8", b"answer9"))
    os.utime(path, ns=(10**18, 10**18))
    after = prepare(config)
    assert after.fingerprint != before.fingerprint
    assert any("answer9" in text for text in texts(config, after.train(0)))


def test_any_number_of_processes_and_compression_give_the_same_samples(
    make_config: MakeConfig, make_jsonl: MakeJsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [pair(index, words=index % 9 + 1) for index in range(500)]
    path = make_jsonl("a/part.jsonl", records)
    whole = prepare(make_config({"a": str(path)}))
    monkeypatch.setattr(building, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(building, "_SMALL_INPUT", 0)
    packed = path.parent / "b" / "part.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(path.read_bytes()))
    parallel = prepare(make_config({"a": str(packed)}, num_proc=2))
    assert [one[:2] for one in content(whole)] == [one[:2] for one in content(parallel)]
    assert sorted(origin.rpartition(":")[2] for *_, origin in content(parallel)) == sorted(
        str(line) for line in range(1, 501)
    )


def test_finished_blocks_are_reused(
    make_config: MakeConfig, make_jsonl: MakeJsonl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(building, "BLOCK_BYTES", 2000)
    path = str(make_jsonl("a.jsonl", [pair(index) for index in range(300)]))
    config = make_config({"a": path})
    calls: list[tuple] = []

    def stop(*progress: object) -> None:
        calls.append(progress)
        if len(calls) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, on_progress=stop)
    finished = {block: block.stat().st_mtime_ns for block in tmp_path.rglob("*.npz")}
    assert len(finished) >= 4 and not list(tmp_path.rglob("meta.json"))

    def check(*_: object) -> None:
        assert {block: block.stat().st_mtime_ns for block in finished} == finished

    resumed = prepare(config, on_progress=check)
    whole = prepare(make_config({"a": path}, cache_dir=str(tmp_path / "other")))
    assert content(resumed) == content(whole)
    assert not list(tmp_path.rglob("*.work")), "nothing is left behind"


def test_a_kill_leaves_no_store_and_no_process_and_the_next_run_finishes(
    make_config: MakeConfig, make_jsonl: MakeJsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config({"a": str(make_jsonl("a.jsonl", [pair(index, 20) for index in range(4000)]))}, num_proc=2)
    script = tmp_path / "run.py"
    script.write_text(
        "import os, signal, sys\nfrom pathlib import Path\nfrom mftcoder.config.schema import RunConfig\n"
        "from mftcoder.data.prepared import build as building, store\n"
        "def die(*_):\n    if len(list(Path(sys.argv[2]).rglob('*.npz'))) >= 5:\n"
        "        print(Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text(), flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n    building.BLOCK_BYTES, building._SMALL_INPUT = 10_000, 0\n"
        "    store.prepare(RunConfig.model_validate_json(sys.argv[1]), on_progress=die)\n"
    )
    command = [sys.executable, script, config.model_dump_json(), tmp_path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    workers = process.stdout.readline().split()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL and workers
    assert not list(tmp_path.rglob("meta.json"))
    deadline = time.monotonic() + 300
    while any(_runs(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_runs(worker) for worker in workers)
    monkeypatch.setattr(building, "BLOCK_BYTES", 10_000)
    finished = set(tmp_path.rglob("*.npz"))
    resumed = prepare(config, on_progress=lambda *_: finished.intersection_update(tmp_path.rglob("*.npz")))
    assert len(finished) >= 5 and resumed.statistics[0].records == 4000


def test_a_script_without_a_main_guard_can_prepare(
    make_config: MakeConfig, make_jsonl: MakeJsonl, tmp_path: Path
) -> None:
    """Without protection, its worker processes would import it again and wait for the lock of their parent."""
    config = make_config({"a": str(make_jsonl("a.jsonl", [pair(index, 20) for index in range(200)]))}, num_proc=2)
    script = tmp_path / "no_guard.py"
    script.write_text(
        "import sys\nfrom mftcoder.config.schema import RunConfig\nfrom mftcoder.data.prepared import build as building, store\n"
        "building.BLOCK_BYTES, building._SMALL_INPUT = 10_000, 0\n"
        "print(store.prepare(RunConfig.model_validate_json(sys.argv[1])).statistics[0].records)\n"
    )
    command = [sys.executable, str(script), config.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "200\n"), done.stderr


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_unwritable_cache_is_a_clear_error(make_config: MakeConfig, make_jsonl: MakeJsonl, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = make_config({"a": str(make_jsonl("a.jsonl", [pair(1)]))}, cache_dir=str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be written.*Set data\.cache_dir"):
        prepare(config)


def test_a_store_is_pickled_by_its_path(make_config: MakeConfig, make_jsonl: MakeJsonl) -> None:
    import pickle

    samples = prepare(make_config({"a": str(make_jsonl("a.jsonl", [pair(index) for index in range(99)]))})).train(0)
    assert samples.lengths.sum() > 0
    sent = pickle.dumps(samples)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).lengths, samples.lengths)


def test_a_skipped_record_counts_once_however_much_is_wrong_with_it(
    make_config: MakeConfig, make_jsonl: MakeJsonl
) -> None:
    """One for validation counts too. An empty file is a problem without a record."""
    twice = {"messages": [{"role": "robot", "content": "a"}, {"role": "robot"}, {"role": "assistant", "content": "b"}]}
    held_out = make_jsonl("valid.jsonl", [pair(3), twice])
    files = [str(make_jsonl("a.jsonl", [pair(1), twice, b"{"])), str(make_jsonl("empty.jsonl", []))]
    config = make_config({"a": {"files": files, "validation": str(held_out)}}, on_error="skip")
    counts = prepare(config).statistics[0]
    assert (counts.records, counts.skipped, counts.problems) == (1, 3, 3 + 1 + 3 + 1)


def test_statistics_are_kept_with_the_store(make_config: MakeConfig, make_jsonl: MakeJsonl) -> None:
    config = make_config({"a": str(make_jsonl("a.jsonl", [pair(1), pair(2), b"{"]))}, on_error="skip")
    first = prepare(config)
    again = prepare(config)
    assert first == again
    assert again.statistics[0].skipped == 1 and "a.jsonl:3: not valid JSON" in again.skipped[0]
    assert json.loads((first.folder / "meta.json").read_text())["statistics"][0]["skipped"] == 1
