"""`mft data verify`: what is kept, dropped and labelled, what a stopped run leaves, and what a failing sandbox means."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mftcoder.curation.pipeline import run as running
from mftcoder.curation.pipeline import verify as verifying
from mftcoder.execution.pool import Pool
from mftcoder.execution.sandbox import Limits
from tests.integration.test_curate import mft


def line(number: int, *, right: bool = True, **fields: Any) -> str:
    """A record in a spelling of its own, which a re-written line would lose."""
    answer = f"```python\ndef f(x):\n    return x + {number}\n```"
    record = {"id": number, "prompt": "Write f.", "completion": answer, "tests": f"assert f(1) == {number + right}"}
    return json.dumps({**record, **fields}, separators=(" , ", " :  "))


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{text}\n" for text in lines))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "BLOCK_BYTES", 600)


def test_a_kept_record_keeps_its_bytes_and_a_failing_one_is_named(tmp_path: Path) -> None:
    lines = [line(1), line(2, right=False), json.dumps({"prompt": "Why?", "completion": "Because."}), line(3)]
    source = write(tmp_path / "chat.jsonl", *lines)
    assert mft("verify", source, "--out", tmp_path / "out") == 0
    kept = (tmp_path / "out" / "chat" / "train.jsonl").read_text().splitlines()
    assert kept == [lines[0], lines[2], lines[3]]
    dropped = json.loads((tmp_path / "out" / "dropped.jsonl").read_text())
    assert (dropped["rule"], dropped["value"], dropped["origin"]) == ("failed_tests", "AssertionError", f"{source}:2")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {row["verdict"]: row["records"] for row in manifest["verdicts"]} == {
        "passed tests+import": 2,
        "failed tests": 1,
        "not run no_code": 1,
    }


def test_a_label_is_one_more_field_and_nothing_else_changes(tmp_path: Path) -> None:
    lines = [line(1), line(2, right=False), line(3, verification={"verdict": "old"})]
    source = write(tmp_path / "chat.jsonl", *lines)
    assert mft("verify", source, "--label", "--failed", "keep", "--out", tmp_path / "out") == 0
    kept = (tmp_path / "out" / "chat" / "train.jsonl").read_text().splitlines()
    assert all(new.startswith(old[:-1]) for new, old in zip(kept[:2], lines, strict=False))
    records = [json.loads(text) for text in kept]
    assert [record.pop("verification") for record in records] == [
        {"verdict": "passed", "checks": ["tests", "import"]},
        {"verdict": "failed", "why": "tests", "detail": "AssertionError"},
        {"verdict": "passed", "checks": ["tests", "import"]},
    ]
    assert [record["id"] for record in records] == [1, 2, 3]


def test_what_cannot_be_run_is_dropped_only_on_request(tmp_path: Path) -> None:
    source = write(tmp_path / "chat.jsonl", line(1), json.dumps({"prompt": "Why?", "completion": "Because."}))
    assert mft("verify", source, "--not-run", "drop", "--out", tmp_path / "out") == 0
    dropped = json.loads((tmp_path / "out" / "dropped.jsonl").read_text())
    assert (dropped["rule"], dropped["value"]) == ("not_run", "no_code")


def test_a_stopped_run_goes_on_behind_its_finished_blocks(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "chat.jsonl", *(line(number, right=number % 3 > 0) for number in range(12)))
    assert mft("verify", source, "--out", tmp_path / "whole") == 0
    ran: list[str] = []
    real = verifying.Run.program
    monkeypatch.setattr(verifying.Run, "program", lambda run: ran.append(run.code) or real(run))
    write_block = verifying._BlockVerdicts.write
    written: list[object] = []

    def stop_at_the_third(self: verifying._BlockVerdicts) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(self.block)
        write_block(self)

    monkeypatch.setattr(verifying._BlockVerdicts, "write", stop_at_the_third)
    assert mft("verify", source, "--out", tmp_path / "out") == 130
    assert not (tmp_path / "out").exists()
    before, finished = set(ran), sum(len(list(verifying.read_verdicts(block))) for block in written)  # type: ignore[arg-type]
    assert len(before) >= finished > 0
    ran.clear()
    monkeypatch.setattr(verifying._BlockVerdicts, "write", write_block)
    assert mft("verify", source, "--out", tmp_path / "out") == 0
    assert len(ran) == 12 - finished
    assert contents(tmp_path / "out" / "chat") == contents(tmp_path / "whole" / "chat")
    assert (tmp_path / "out" / "dropped.jsonl").read_bytes() == (tmp_path / "whole" / "dropped.jsonl").read_bytes()


def test_a_failing_sandbox_is_not_the_records_fault(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "chat.jsonl", *(line(number) for number in range(6)))
    real = Pool.run

    def failing(self: Pool, programs: Any, limits: Limits) -> Iterator[Any]:
        for key, result in real(self, programs, limits):
            broken = replace(result, status="sandbox_error", stderr="no space left")
            yield key, broken if key == "1.0" else result

    monkeypatch.setattr(Pool, "run", failing)
    assert mft("verify", source, "--out", tmp_path / "out") == 1
    assert "the sandbox failed on 1 programs, which says nothing about their records" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Pool, "run", real)
    assert mft("verify", source, "--out", tmp_path / "out") == 0
    assert len((tmp_path / "out" / "chat" / "train.jsonl").read_text().splitlines()) == 6


def test_a_recipe_verifies_what_its_filters_leave(tmp_path: Path) -> None:
    write(
        tmp_path / "chat.jsonl", line(1), line(2, right=False), json.dumps({"prompt": "Why?", "completion": "Because."})
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"tasks:\n  chat: {tmp_path / 'chat.jsonl'}\nsteps:\n  - filter: {{answer_words: [2, null]}}\n"
        f"  - verify: {{checks: tests, label: true}}\n  - filter: general\noutput_dir: {tmp_path / 'out'}\n"
    )
    assert mft("curate", recipe) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [sum(step["dropped"].values()) for step in manifest["steps"]] == [0, 1, 1, 0]
    [record] = [json.loads(text) for text in (tmp_path / "out" / "chat" / "train.jsonl").read_text().splitlines()]
    assert record["verification"] == {"verdict": "passed", "checks": ["tests"]}
    assert "| 2-verify | passed tests | 1 |" in (tmp_path / "out" / "README.md").read_text()


def answer(body: str) -> str:
    return f"```python\ndef f(x):\n    {body}\n```"


def test_answers_to_one_question_become_pairs_of_a_passing_and_a_failing_one(
    tmp_path: Path, small_blocks: None
) -> None:
    def record(question: str, text: str, **fields: Any) -> str:
        turns = [{"role": "system", "content": "Be short."}, {"role": "human", "content": question}]
        tests = {"tests": "assert f(1) == 2"}
        return json.dumps({"chat_rounds": [*turns, {"role": "bot", "content": text}], **tests, **fields})

    right, other, wrong = answer("return x + 1"), answer("return 1 + x"), answer("return x")
    lines = [
        record("Add one.", right),
        record("Only right.", right),
        record("Add one.", wrong),
        record("Sampled.", wrong, answers=[right, other, wrong, answer("return x + 3")]),
        record("Add one.", other),
        record("Unproved.", right, tests="assert True"),
        record("Unproved.", wrong, tests="assert True"),
    ]
    source, pairs = write(tmp_path / "chat.jsonl", *lines), tmp_path / "pairs.jsonl"
    arguments = ("verify", source, "--out", tmp_path / "out", "--preferences", pairs, "--samples", "answers")
    assert mft(*arguments) == 0
    written = [json.loads(text) for text in pairs.read_text().splitlines()]
    texts = [
        (one["chosen"][1]["content"], one["chosen"][-1]["content"], one["rejected"][-1]["content"]) for one in written
    ]
    assert sorted(texts) == sorted(
        [("Add one.", right, wrong), ("Sampled.", right, wrong), ("Sampled.", other, answer("return x + 3"))]
    )
    assert all(one["chosen"][:-1] == one["rejected"][:-1] for one in written)
    assert [turn["role"] for turn in written[0]["chosen"]] == ["system", "human", "bot"]
    before = pairs.read_bytes()
    pairs.unlink()
    assert mft(*arguments) == 0, "the same command makes a lost file again"
    assert pairs.read_bytes() == before


def test_a_file_of_pairs_replaces_no_other_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "chat.jsonl", line(1))
    other = write(tmp_path / "other.jsonl", line(1))
    for path, problem in (
        (source, "is an input"),
        (other, "is no pair of answers"),
        (tmp_path / "out" / "pairs.jsonl", "lies in the output directory"),
        (tmp_path / "pairs.json", "ends in .jsonl"),
    ):
        assert mft("verify", source, "--out", tmp_path / "out", "--preferences", path) == 2
        assert problem in capsys.readouterr().err
    assert source.read_text() == other.read_text() == f"{line(1)}\n"


def test_mistakes_end_with_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "chat.jsonl", line(1))
    assert mft("verify", source, "--checks", "test", "--out", tmp_path / "out") == 2
    assert "unknown check 'test'. Did you mean 'tests'?" in capsys.readouterr().err
    assert mft("verify", source, "--language", "pyton", "--out", tmp_path / "out") == 2
    assert "unknown language 'pyton'. Did you mean 'python'?" in capsys.readouterr().err


def test_a_field_of_tests_that_no_record_has_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "chat.jsonl", line(1), line(2, tets=""))
    assert mft("verify", source, "--tests", "check", "--out", tmp_path / "out") == 2
    assert "no record has the field 'check'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["chat.jsonl"]
    pairs = ("--samples", "smaples", "--preferences", tmp_path / "pairs.jsonl")
    assert mft("verify", source, *pairs, "--out", tmp_path / "other") == 0
    assert "warning: verify: samples: no record has the field 'smaples'" in capsys.readouterr().err
    assert mft("verify", source, "--tests", "tets", "--out", tmp_path / "out") == 0
