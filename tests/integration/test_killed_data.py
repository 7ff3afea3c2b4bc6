"""Commands of `mft data`, killed with SIGKILL at each step they take on the disk: the same command then ends as if nothing had happened."""

import contextlib
import itertools
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("httpx", reason="the extra `curate` brings httpx")
pytest.importorskip("rensa", reason="the extra `curate` brings rensa")

from tests.forked import run as mft
from tests.integration.test_mine import CODE
from tests.scripted_endpoint import Answer, Asked, ScriptedEndpoint

STEPS = ("replace", "rename", "unlink", "rmdir", "fsync", "mkdir")
"""How files and folders appear, are made to last, and go. Half written files lie between two of these."""
COMMANDS: dict[str, tuple[str, ...]] = {
    "filter": ("filter", "chat.jsonl", "--rules", "broken_python", "--out", "out"),
    "dedup": ("dedup", "chat.jsonl", "--out", "out"),
    "decontaminate": ("decontaminate", "chat.jsonl", "--benchmarks", "mini", "--out", "out"),
    "verify": ("verify", "chat.jsonl", "--samples", "others", "--preferences", "pairs.jsonl", "--out", "out"),
    "mine": ("mine", "code", "--out", "out", "--exam", "exam", "--exam-share", "0.4"),
    "stats": ("stats", "chat.jsonl", "--near", "--out", "out.html"),
}


def write_inputs(folder: Path) -> None:
    """Records of which each step keeps some and drops some, and a folder of code."""
    answers = [f"```python\ndef f(x):\n    return x + {number}\n```" for number in range(4)]
    records = [
        {
            "id": number,
            "prompt": f"Write f {number % 5}.",
            "completion": answer,
            "tests": f"assert f(1) == {1 + number % 3}",
        }
        for number, answer in enumerate([*answers, *answers[:2], "```python\nx = = 1\n```"])
    ]
    for record in records:
        record["others"] = [answers[0], answers[2]]
    folder.mkdir()
    (folder / "chat.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "topics.txt").write_text("lists\nsets\n")
    (folder / "code").mkdir()
    for number in range(6):
        (folder / "code" / f"m{number}.py").write_text(CODE.replace("moved", f"moved_{number}"))


def killed_at(step: int) -> None:
    """In the command's process: kill it before it takes this step, counted from 1."""
    steps = itertools.count(1)

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object, **named: object) -> object:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*given, **named)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))


def contents(folder: Path) -> dict[str, bytes]:
    """All files, those that are hidden too. A journal of requests holds times, so it is the keys of its requests here."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: _keys_of(path) if path.name == "requests.journal" else path.read_bytes() for name, path in files.items()
    }


def _keys_of(journal: Path) -> bytes:
    return b"\n".join(json.loads(line).get("key", "").encode() for line in journal.read_bytes().splitlines())


def run(command: str, folder: Path, first: Callable[[], object] = bool) -> int:
    """Its exit code, in a folder of its own with the inputs in it."""
    if not folder.exists():
        write_inputs(folder)
        (folder / "tmp").mkdir()
    environment = {"MFTCODER_CACHE": str(folder.parent / "cache"), "TMPDIR": str(folder / "tmp")}
    with contextlib.chdir(folder):  # the same relative paths in each folder
        done = mft("data", *COMMANDS[command], environment=environment, first=first)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def ends_as_if_nothing_had_happened(command: str, step: int, tmp_path: Path) -> bool:
    """Kill the command at a step, run it again, and compare with a run in peace. False if it takes fewer steps."""
    peace, killed = tmp_path / "peace", tmp_path / f"killed-{step}"
    if not peace.exists():
        assert run(command, peace) == 0
    if run(command, killed, partial(killed_at, step)) == 0:
        return False
    assert run(command, killed) == 0
    assert contents(killed) == contents(peace)
    return True


@pytest.mark.slow(reason="runs a command twice for each fifth of its steps on the disk: half a minute a command")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_killed_at_any_step_ends_as_if_nothing_had_happened(command: str, tmp_path: Path) -> None:
    steps = itertools.count(2, 5)
    taken = itertools.takewhile(lambda step: ends_as_if_nothing_had_happened(command, step, tmp_path), steps)
    assert len(list(taken)) >= 3


@pytest.mark.slow(reason="runs a synthesis twice for each fifth of its steps on the disk")
def test_a_synthesis_killed_at_any_step_ends_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def teacher(asked: Asked) -> Answer:
        return Answer(
            "```python\nprint('words')\n```" if "<exercise>" not in asked.text else "<exercise>Write.</exercise>"
        )

    with ScriptedEndpoint(teacher) as endpoint:
        asking = ("--endpoint", endpoint.url, "--model", "scripted", "--exercises", "1", "--concurrency", "1")
        command = ("synthesize", "exercises", "topics.txt", *asking, "--out", "out")
        monkeypatch.setitem(COMMANDS, "synthesize", command)
        steps = itertools.count(2, 5)
        taken = itertools.takewhile(lambda step: ends_as_if_nothing_had_happened("synthesize", step, tmp_path), steps)
        assert len(list(taken)) >= 3
