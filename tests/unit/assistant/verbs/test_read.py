"""Reviews keep to the lines that a diff adds, whatever wrote the diff."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mftcoder.assistant.verbs.read import review
from mftcoder.errors import ConfigError


class Says:
    """A model with one answer, and what it was asked."""

    def __init__(self, text: str):
        self.text, self.asked = text, ""

    def ask(self, messages: Any, *, seed: int = 0) -> Any:
        self.asked = messages[-1]["content"]
        return SimpleNamespace(text=self.text, is_cut=False)

    def go_on(self, before: str, after: str, **_: Any) -> None:
        raise AssertionError("a review needs no completion")


def git(folder: Path, *words: str) -> str:
    names = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *names, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("one\ntwo\n")
    (tmp_path / "gone.py").write_text("x\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "First")
    (tmp_path / "a.py").write_text("one\nthree\ntwo")
    (tmp_path / "gone.py").unlink()
    (tmp_path / "image.bin").write_bytes(bytes(range(256)))
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "Second\n\nWith a body.")
    return tmp_path


@pytest.mark.parametrize("words", [("diff", "HEAD~1"), ("show",), ("format-patch", "--stdout", "-1")])
def test_diffs_of_git_are_read_with_their_line_numbers(repository: Path, words: tuple[str, ...]) -> None:
    model = Says("a.py:2: wrong\na.py:1: not added\ngone.py:1: gone")
    made = review(model, git(repository, *words), rounds=1)
    assert made.text == "a.py:2: wrong"
    assert made.notes == ("2 findings left out: they name no line that the diff adds",)
    assert "    2 + three" in model.asked


def test_no_findings_is_an_answer() -> None:
    diff = "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x\n+y\n"
    assert review(Says("No findings."), diff, rounds=1).text == "No findings."


@pytest.mark.parametrize("diff", ["", "hello\n", "--- a/a.py\n+++ b/a.py\n@@ -1,9 +1 @@\n-x\n+y\n"])
def test_what_is_no_diff_is_a_mistake_of_the_user(diff: str) -> None:
    with pytest.raises(ConfigError, match="the diff cannot be read"):
        review(Says("No findings."), diff, rounds=1)
