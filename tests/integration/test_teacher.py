"""`mft data verify --teacher`: a model writes tests and answers first, and what they agree on is verified."""

import json
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="the extra `curate` brings httpx")
pytest.importorskip("rensa", reason="the extra `curate` brings rensa")

from mftcoder.cli import main
from mftcoder.curation.example import fenced
from tests.scripted_endpoint import Answer, Asked, ScriptedEndpoint

RIGHT = "def largest(items):\n    if not items:\n        return None\n    return max(items)\n"
WRONG = "def largest(items):\n    return min(items)\n"
TESTS = "assert largest([1, 3, 2]) == 3\nassert largest([]) is None\nassert largest([1, 2]) == 1"


def test_verify_with_a_teacher_proves_a_record_that_had_no_tests(tmp_path: Path) -> None:
    source = tmp_path / "chat.jsonl"
    source.write_text(json.dumps({"prompt": "Write largest(items).", "completion": fenced(RIGHT)}) + "\n")
    wrong = iter((True, False, False, False))

    def answer(asked: Asked) -> Answer:
        if "assert" in asked.text:
            return Answer(fenced(TESTS))
        return Answer(fenced(WRONG if next(wrong) else RIGHT))

    with ScriptedEndpoint(answer) as server:
        places = ("--out", str(tmp_path / "out"), "--preferences", str(tmp_path / "pairs.jsonl"))
        main(["data", "verify", str(source), *places, "--teacher", server.url, "--teacher-model", "scripted"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [row["verdict"] for row in manifest["verdicts"]] == ["passed tests+import"]
    [record] = [json.loads(text) for text in (tmp_path / "out" / "tested" / "train.jsonl").read_text().splitlines()]
    assert "== 1" not in record["tests"]
    [pair] = [json.loads(text) for text in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert pair["rejected"][-1]["content"] == fenced(WRONG)


def test_a_teacher_needs_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["data", "verify", "x", "--out", str(tmp_path / "out"), "--teacher", "http://localhost:1/v1"])
    assert "give --teacher and --teacher-model together" in capsys.readouterr().err
