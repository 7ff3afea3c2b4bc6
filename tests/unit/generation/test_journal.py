"""The journal of a generation: answers of a killed run are used, answers with other settings are not."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from mftcoder.errors import GenerationError
from mftcoder.generation.engine import Completion, Prompt
from mftcoder.generation.journal import GenerationJournal

SETTINGS = {"task": "mini", "seed": 0}


def completion(number: int, sample: int = 0) -> Completion:
    return Completion(Prompt("mini", f"mini/{number}", sample, "prompt"), f"text {number}", "stop", 3)


def written(path: Path, numbers: range, rank: int = 0, settings: dict[str, Any] = SETTINGS) -> Path:
    """Write a journal with answers to these problems; returns its file."""
    with GenerationJournal(path, settings, rank) as journal:
        for number in numbers:
            journal.add(completion(number), f"answer {number}")
        return journal.path


def answers(path: Path, settings: dict[str, Any] = SETTINGS, rank: int = 0) -> dict[tuple[str, int], str]:
    with GenerationJournal(path, settings, rank) as journal:
        return journal.answers


def expected(numbers: range) -> dict[tuple[str, int], str]:
    return {(f"mini/{number}", 0): f"answer {number}" for number in numbers}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "completions_mini_m.jsonl"


def test_added_answers_are_read_again(path: Path) -> None:
    written(path, range(3))
    assert answers(path) == expected(range(3))


def test_an_answer_is_in_the_file_when_add_returns(path: Path) -> None:
    with GenerationJournal(path, SETTINGS) as journal:
        journal.add(completion(1, sample=4), "é\n")
        line = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    assert line["answer"] == "é\n" and (line["problem_id"], line["sample"], line["finish_reason"]) == (
        "mini/1", 4, "stop",
    )  # fmt: skip


def test_answers_that_are_dropped_are_counted_with_the_settings_that_differ(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mftcoder")
    before = {"task": "mini", "template": "a" * 40, "engine": "openvino", "sampling": {"seed": 0, "top_p": 1.0}}
    written(path, range(3), settings=before)
    answers(path, before)
    assert not caplog.records  # nothing was there, or the same settings
    answers(path, {"task": "mini", "template": "b" * 40, "engine": "vllm", "sampling": {"seed": 4, "top_p": 1.0}})
    answers(path, before)  # the file holds no samples any more
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: its 3 samples have other settings and are written anew: template, engine openvino -> vllm, seed 0 -> 4"
    ]


def test_answers_made_with_other_settings_do_not_count_and_are_replaced(path: Path) -> None:
    written(path, range(3))
    other = {**SETTINGS, "seed": 1}
    assert answers(path, other) == {}
    assert json.loads(path.read_text()) == {"settings": other}


@pytest.mark.parametrize("cut", [2, 10, 40])
def test_a_line_truncated_by_a_crash_is_generated_again(path: Path, cut: int) -> None:
    written(path, range(3))
    path.write_bytes(path.read_bytes()[:-cut])
    written(path, range(2, 3))
    assert answers(path) == expected(range(3))
    assert path.read_text().count("\n") == 4


def test_each_process_writes_its_own_file_and_reads_those_of_all(path: Path) -> None:
    first, second, third = (written(path, range(rank, rank + 1), rank) for rank in range(3))
    assert (first, second.name, third.name) == (
        path,
        "completions_mini_m.rank1.jsonl",
        "completions_mini_m.rank2.jsonl",
    )
    assert answers(path) == answers(path, rank=1) == answers(path, rank=7) == expected(range(3))
    assert len(first.read_text().splitlines()) == 2


def test_the_first_process_merges_the_files_of_the_others(path: Path) -> None:
    written(path, range(1, 2), rank=1)
    with GenerationJournal(path, SETTINGS) as journal:
        journal.add(completion(0), "answer 0")
        written(path, range(2, 3), rank=2)  # while the first one is at work
        journal.merge_others()
        assert journal.answers == expected(range(3))
        journal.add(completion(3), "answer 3")  # it goes on in the file that has all
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert answers(path) == expected(range(4))


def test_a_journal_of_other_settings_is_neither_merged_nor_removed(path: Path) -> None:
    """It may belong to a model whose name ends like that of a rank's file."""
    other = written(path, range(5, 6), rank=1, settings={**SETTINGS, "seed": 1})
    with GenerationJournal(path, SETTINGS) as journal:
        journal.merge_others()
        assert journal.answers == {}
    assert other.read_text().count("\n") == 2


def test_a_full_disk_is_a_line_that_says_what_is_kept(path: Path) -> None:
    with GenerationJournal(path, SETTINGS) as journal, Path("/dev/full").open("wb", buffering=0) as full:
        journal.add(completion(0), "answer 0")
        journal._file._file.close()
        journal._file._file = full
        with pytest.raises(
            GenerationError, match=r"No space left on device\. Finished records are kept; free some space"
        ):
            journal.add(completion(1), "answer 1")
    assert answers(path) == expected(range(1))


def test_a_journal_that_another_process_writes_is_refused_and_loses_nothing(path: Path) -> None:
    with GenerationJournal(path, SETTINGS) as journal:
        journal.add(completion(0), "answer 0")
        for settings in (SETTINGS, {**SETTINGS, "seed": 1}):
            with pytest.raises(GenerationError, match="another process is writing into it"):
                GenerationJournal(path, settings)
        journal.add(completion(1), "answer 1")
    assert answers(path) == expected(range(2))


def test_a_journal_that_cannot_be_written_is_one_line(path: Path) -> None:
    path.mkdir()
    with pytest.raises(GenerationError, match="cannot be written"):
        GenerationJournal(path, SETTINGS)
