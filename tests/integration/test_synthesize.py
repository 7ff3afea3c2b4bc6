"""`mft data synthesize` as a command, against a real server: killed and resumed, stopped by its budget, and wrong in a line."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="the extra `curate` brings httpx")
pytest.importorskip("rensa", reason="the extra `curate` brings rensa")

from mftcoder.cli import main
from tests.scripted_endpoint import Answer, Asked, ScriptedEndpoint, error

PATIENCE = 120


def teacher(asked: Asked) -> Answer:
    if "Make it more precise" in asked.text:
        return Answer(f"Sharp request {asked.body['seed']}.")
    if "<exercise>" in asked.text:
        return Answer("".join(f"<exercise>Write {asked.body['seed'] + n * 7919} words.</exercise>" for n in range(3)))
    return Answer("Easy.\n\n```python\nprint('words')\n```")


def arguments(endpoint: ScriptedEndpoint, folder: Path, *more: str) -> list[str]:
    topics = folder / "topics.txt"
    topics.write_text("lists\nsets\nfiles\ntrees\n")
    model = ["--endpoint", endpoint.url, "--model", "scripted"]
    options = ["--exercises", "3", "--concurrency", "3", "--out", str(folder / "out")]
    return ["data", "synthesize", "exercises", str(topics), *model, *options, *more]


def mft(*given: str) -> int:
    try:
        main(list(given))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def journal_lines(folder: Path) -> int:
    path = folder / "out" / "requests.journal"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@contextmanager
def interruptible(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command with SIGINT at its default, even where the tests run in the background. It never outlives the block."""

    def receive_interrupts() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=receive_interrupts
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_command_goes_on_without_repeating_an_answered_request(
    tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    answered = 7
    with ScriptedEndpoint(lambda asked: teacher(asked) if asked.number <= answered else Answer(never=True)) as endpoint:
        command = [sys.executable, "-m", "mftcoder", *arguments(endpoint, tmp_path)]
        with interruptible(command) as process:
            deadline = time.monotonic() + PATIENCE
            while journal_lines(tmp_path) < 1 + answered and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            assert journal_lines(tmp_path) == 1 + answered
            os.kill(process.pid, sent)
            _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == code
        assert "Traceback" not in said
        lost = {asked.content for asked in endpoint.asked[answered:]}  # under way when it was killed
        endpoint.script = teacher
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    times = Counter(asked.content for asked in endpoint.asked)
    assert {content for content, count in times.items() if count > 1} <= lost
    assert len(times) == 4 * (1 + 1 + 3)
    lines = (tmp_path / "out" / "exercises" / "train.jsonl").read_text().splitlines()
    assert len(lines) == 4 * 3


def test_an_output_in_parts_is_that_of_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def output(folder: Path) -> dict[str, Any]:
        manifest = json.loads((folder / "out" / "manifest.json").read_text())
        return {"files": manifest["files"], "steps": manifest["steps"], "tasks": manifest["tasks"]}

    folders = [tmp_path / name for name in ("whole", "parts")]
    for folder in folders:
        folder.mkdir()
    with ScriptedEndpoint(teacher) as endpoint:
        for folder in folders:
            monkeypatch.chdir(folder)  # origins name the topics file: both runs give the same relative path
            steps = [] if folder.name == "whole" else [["--budget-requests", str(n)] for n in (5, 9)]
            for more in steps:
                assert mft(*arguments(endpoint, Path(), *more)) == 3
            assert mft(*arguments(endpoint, Path())) == 0
    assert output(folders[0]) == output(folders[1])


def test_a_spent_budget_has_an_exit_code_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedEndpoint(teacher) as endpoint:
        assert mft(*arguments(endpoint, tmp_path, "--budget-requests", "6")) == 3
        shown = capsys.readouterr()
        assert (
            shown.err.strip()
            .splitlines()[-1]
            .startswith("stopped: 6 of 6 requests are used. What is finished is written")
        )
        assert "records ->" in shown.out
        assert mft(*arguments(endpoint, tmp_path, "--budget-requests", "20")) == 0
    assert len(endpoint.asked) == 20
    assert "exercises: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (error(401, "bad key"), "HTTP 401: bad key. Check the URL, the model's name (scripted) and the API key"),
        (error(400, "no"), "3 requests in a row brought no answer, the last one: HTTP 400: no"),
        (Answer("nonsense without any form"), "no record is left. Its README.md shows what each rule dropped"),
    ],
)
def test_an_endpoint_that_gives_nothing_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: Answer, line: str
) -> None:
    with ScriptedEndpoint(lambda _: answer) as endpoint:
        assert mft(*arguments(endpoint, tmp_path)) == 2
    [said] = capsys.readouterr().err.strip().splitlines()
    assert line in said


def test_two_commands_do_not_write_into_one_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mftcoder.curation.teacher.journal import RequestJournal

    with ScriptedEndpoint(teacher) as endpoint, RequestJournal(tmp_path / "out" / "requests.journal"):
        assert mft(*arguments(endpoint, tmp_path)) == 2
    assert "another process is writing into it" in capsys.readouterr().err
    assert endpoint.asked == []


def test_prompts_are_copied_out_edited_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "prompts"
    assert mft("data", "synthesize", "prompts", str(prompts)) == 0
    assert mft("data", "synthesize", "prompts", str(prompts)) == 2  # nothing is replaced
    answer = prompts / "exercises" / "answer.md"
    answer.write_text(f"Be brief. {answer.read_text()}")
    with ScriptedEndpoint(teacher) as endpoint:
        assert mft(*arguments(endpoint, tmp_path, "--prompts", str(prompts), "--limit", "1")) == 0
        assert sum(asked.text.startswith("Be brief.") for asked in endpoint.asked) == 3
        sent = len(endpoint.asked)
        answer.write_text("{{ qestion }}")
        assert mft(*arguments(endpoint, tmp_path, "--prompts", str(prompts))) == 2
    errors = capsys.readouterr().err
    assert "unknown placeholder 'qestion'. Did you mean 'question'?" in errors
    assert "the placeholder {{ question }} is missing" in errors
    assert len(endpoint.asked) == sent
