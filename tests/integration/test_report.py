"""`mft report`: the page beside its Markdown, and mistakes in a line."""

import json
import subprocess
import sys
from pathlib import Path


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
