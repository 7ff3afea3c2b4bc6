"""`mft report`: the page beside its Markdown, and mistakes in a line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mftcoder.app.results.report import report
from mftcoder.benchmarks.catalogue import load
from mftcoder.errors import DataError


def mft(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "mftcoder", *arguments], capture_output=True, text=True, check=False)


def test_page_and_markdown_are_written_with_scores_named_or_found(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    record = {"kind": "validation", "step": 0, "loss": 1.0, "losses": {"tests": 1.0}}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    for model, value in (("base", 0.2), ("tuned", 0.3)):
        metrics = {"task": "mini", "model": model, "pass@1": value}
        (tmp_path / f"metrics_mini_{model}.json").write_text(json.dumps(metrics))
    files = [str(tmp_path / f"metrics_mini_{model}.json") for model in ("base", "tuned")]
    done = mft("report", str(run), "--metrics", *files)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(run / "report.html"), str(run / "report.md")]
    assert "+10.0 points" in (run / "report.md").read_text()


def test_a_folder_that_is_no_run_ends_with_exit_code_2(tmp_path: Path) -> None:
    done = mft("report", str(tmp_path), "--out", str(tmp_path / "page.html"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path}: is not a run folder: it has no metrics.jsonl")
    assert not (tmp_path / "page.html").exists()


def scored(folder: Path, **changes: Any) -> list[Path]:
    """A run, and two models' answers to `mini` with their scores; `changes` take the place of files of the second model."""
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    ids = [problem.id for problem in load("mini").problems]
    for model in ("base", "tuned"):
        rows = [{"id": name, "passed": 1, "statuses": ["passed"]} for name in ids]
        files: dict[str, Any] = {
            "metrics": {"task": "mini", "model": model, "pass@1": 1.0, "problems": rows},
            "generations": [["    return 1\n"] for _ in ids],
            "settings": {"mode": "completion", "prefix": "# ", "suffix": ""},
        }
        for kind, content in {**files, **(changes if model == "tuned" else {})}.items():
            (folder / f"{kind}_mini_{model}.json").write_text(json.dumps(content))
    return [folder / f"metrics_mini_{model}.json" for model in ("base", "tuned")]


def test_answers_of_two_models_are_shown_with_their_prompt(tmp_path: Path) -> None:
    report([tmp_path / "run"], metrics=scored(tmp_path / "run"))
    assert "Answers: mini" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.parametrize(
    ("kind", "content", "problem"),
    [
        ("generations", [["x"]], "must hold a list of texts for each of the"),
        ("generations", [[1]] * 100, "must hold a list of texts for each of the"),
        ("generations", True, "must hold a list of texts for each of the"),
        ("settings", {"mode": "completion"}, "must hold mode, prefix and suffix"),
        ("settings", {"mode": "x", "prefix": "", "suffix": ""}, "must hold mode, prefix and suffix"),
        ("settings", [], "must hold mode, prefix and suffix"),
    ],
)
def test_edited_answers_are_named_in_one_line(kind: str, content: Any, problem: str, tmp_path: Path) -> None:
    files = scored(tmp_path / "run", **{kind: content})
    with pytest.raises(DataError, match=f"{kind}_mini_tuned.json: {problem}"):
        report([tmp_path / "run"], metrics=files)
    assert not (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("rows", [True, [{"id": 1, "passed": 1, "statuses": 1}], [3]])
def test_scores_without_a_status_for_each_problem_are_not_compared(rows: Any, tmp_path: Path) -> None:
    metrics = {"task": "mini", "model": "tuned", "pass@1": 1.0, "problems": rows}
    report([tmp_path / "run"], metrics=scored(tmp_path / "run", metrics=metrics))
    assert "Before and after" not in (tmp_path / "run" / "report.md").read_text()
