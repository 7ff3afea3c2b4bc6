"""Repairs from a git log: which commits count, what is taken from them, and that a hostile repository runs nothing."""

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from mftcoder.curation.mining.mine import MiningOptions, Record
from mftcoder.curation.mining.repository.git import Commit, GitRepository
from mftcoder.curation.mining.repository.history import is_fix, mine_history
from mftcoder.errors import DataError

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
CODE = '''def clamp(value, low, high):
    """Move a value into the range from low to high."""
    if value > low:
        return low
    return min(value, high)


def other(value):
    doubled = value + value
    return doubled + 1000000
'''
FIXED = CODE.replace("value > low", "value < low")


def git(folder: Path, *arguments: str) -> str:
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", "-C", str(folder), *names, *arguments], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.strip()


def commit(folder: Path, message: str, **files: str) -> str:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", message)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    commit(folder, "Begin", ranges_py=CODE)
    return folder


def mined(folder: Path, pattern: str = "") -> tuple[list[Record], Counter[str]]:
    skips: Counter[str] = Counter()
    options = MiningOptions(valid_share=0.0, languages=("python",))
    task = mine_history(folder, options, skips, re.compile(pattern) if pattern else None)
    return task.train, +skips


def test_a_fix_gives_the_function_before_and_after(repository: Path) -> None:
    fix = commit(repository, "Fix the lower bound of clamp", ranges_py=FIXED)
    (record,), skips = mined(repository)
    question, answer = (turn["content"] for turn in record["chat_rounds"])
    assert "value > low" in question
    assert "def other" not in question
    assert answer == f"```python\n{FIXED.split(chr(10) * 3)[0]}\n```"
    assert (record["commit"], record["source"], record["language"]) == (fix, "ranges.py:1", "python")
    assert skips == {}


def test_the_message_is_told_in_half_of_the_questions(repository: Path) -> None:
    for number in range(12):
        commit(repository, f"Fix bug {number}", ranges_py=CODE.replace("min(value", f"min({number}"))
    records, _ = mined(repository)
    told = sum("The commit that fixed it says: Fix bug" in record["chat_rounds"][0]["content"] for record in records)
    assert len(records) == 12
    assert 0 < told < 12
    assert mined(repository)[0] == records


def test_a_file_renamed_by_the_fix_is_followed(repository: Path) -> None:
    git(repository, "mv", "ranges.py", "bounds.py")
    commit(repository, "Fix the lower bound and the name", bounds_py=FIXED)
    (record,), _ = mined(repository)
    assert record["source"] == "bounds.py:1"
    assert "value > low" in record["chat_rounds"][0]["content"]


def test_merges_layout_comments_tests_and_signatures_give_nothing(repository: Path) -> None:
    commit(repository, "Fix the text", ranges_py=CODE.replace("Move a value", "Bring a value"))
    commit(repository, "Fix the layout", ranges_py=CODE.replace("min(value, high)", "min(value,   high)"))
    commit(repository, "Fix the signature", ranges_py=CODE.replace("(value, low, high)", "(value, low, high=7)"))
    commit(repository, "Fix a test", tests__test_a_py=CODE)
    commit(repository, "Fix a test again", tests__test_a_py=FIXED)
    git(repository, "checkout", "-q", "-b", "side")
    commit(repository, "Work on the side", side_py=CODE)
    git(repository, "checkout", "-q", "main")
    git(repository, "merge", "-q", "--no-ff", "-m", "Fix all by a merge", "side")
    records, skips = mined(repository)
    assert records == []
    assert skips == {
        "commit: changes no function that makes an example": 5,
        "commit: its message names no fix": 1,
        "history: a function with another signature": 1,
    }


def test_large_commits_are_counted_not_read(repository: Path) -> None:
    many = {f"m{number}_py": CODE for number in range(40)}
    commit(repository, "Add many", **many)
    commit(repository, "Fix many", **dict.fromkeys(many, FIXED))
    commit(repository, "Fix four", **dict.fromkeys(list(many)[:4], CODE))
    records, skips = mined(repository)
    assert records == []
    assert skips["commit: changes more than 30 files"] == 1
    assert skips["commit: changes more than 3 functions"] == 1


def test_a_repair_on_two_branches_counts_once(repository: Path) -> None:
    commit(repository, "Fix the lower bound", ranges_py=FIXED)
    commit(repository, "Revert it", ranges_py=CODE)
    commit(repository, "Fix the lower bound once more", ranges_py=FIXED)
    records, skips = mined(repository)
    assert len(records) == 1
    assert skips["history: repeated"] == 1


def test_files_that_cannot_be_parsed_are_counted(repository: Path) -> None:
    commit(repository, "Fix nothing yet", ranges_py="def clamp(:\n")
    commit(repository, "Fix the syntax", ranges_py=FIXED)
    records, skips = mined(repository)
    assert records == []
    assert skips["history: a file that cannot be read or parsed"] == 2


def test_a_hostile_configuration_runs_nothing(repository: Path, tmp_path: Path) -> None:
    commit(repository, "Fix the lower bound", ranges_py=FIXED)
    trap, mark = tmp_path / "trap.sh", tmp_path / "mark"
    trap.write_text(f'#!/bin/sh\necho "$@" >> {mark}\n')
    trap.chmod(0o755)
    (repository / ".gitattributes").write_text("*.py diff=trap filter=trap\n")
    settings = {
        "core.fsmonitor": str(trap),
        "diff.external": str(trap),
        "core.pager": str(trap),
        "diff.trap.textconv": str(trap),
        "diff.trap.command": str(trap),
        "filter.trap.smudge": str(trap),
        "core.sshCommand": str(trap),
        "core.hooksPath": str(tmp_path),
        "alias.rev-list": f"!{trap}",
        "remote.origin.url": f"ext::{trap}",
        "remote.origin.promisor": "true",
        "extensions.partialClone": "origin",
        "protocol.ext.allow": "always",
        "remote.origin.uploadpack": str(trap),
        "core.repositoryformatversion": "1",
    }
    for key, value in settings.items():
        git(repository, "config", key, value)
    (record,), _ = mined(repository)
    assert record["source"] == "ranges.py:1"
    blob = git(repository, "rev-parse", "HEAD:ranges.py")
    (repository / ".git" / "objects" / blob[:2] / blob[2:]).unlink()  # which a partial clone would fetch
    records, skips = mined(repository)
    assert (records, skips["history: a file that cannot be read or parsed"]) == ([], 1)
    assert not mark.exists()


def test_settings_of_the_user_and_of_the_environment_do_not_reach_it(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(repository, "Fix the lower bound", ranges_py=FIXED)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "false")
    assert len(mined(repository)[0]) == 1


def test_what_is_no_repository_is_refused_also_inside_one(repository: Path, tmp_path: Path) -> None:
    (repository / "part").mkdir()
    for folder in (tmp_path, repository / "part"):
        with pytest.raises(DataError, match="cannot be read as a git repository"):
            mined(folder)
    with pytest.raises(DataError, match="no such folder"):
        mined(tmp_path / "none")


def test_a_repository_without_commits_is_refused(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    with pytest.raises(DataError, match="HEAD has no commit that git can read, so there is no history"):
        mined(tmp_path)


def test_large_objects_are_not_read(repository: Path) -> None:
    with GitRepository(repository) as opened:
        assert opened.content("HEAD:ranges.py", len(CODE) - 1) is None
        assert opened.content("HEAD:ranges.py", len(CODE)) == CODE.encode()
        assert opened.content("HEAD:none.py", 100) is None
        assert opened.content("HEAD:ranges.py", len(CODE)) == CODE.encode()


def test_a_repair_names_the_licence_of_its_file_or_of_the_repository(repository: Path) -> None:
    commit(
        repository,
        "Add a licence",
        LICENSE="MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy",
    )
    commit(repository, "Fix the lower bound", ranges_py=FIXED)
    commit(repository, "Add one", one_py=f"# SPDX-License-Identifier: ISC\n{CODE}")
    commit(
        repository, "Fix one", one_py=f"# SPDX-License-Identifier: ISC\n{FIXED.replace('min(value', 'min(value + 0')}"
    )
    records, _ = mined(repository)
    assert {record["source"].split(":")[0]: record["license"] for record in records} == {
        "ranges.py": "MIT",
        "one.py": "ISC",
    }
    skips: Counter[str] = Counter()
    kept = mine_history(repository, MiningOptions(valid_share=0.0, licenses=("ISC",)), skips).train
    assert [record["license"] for record in kept] == ["ISC"]
    assert skips["file: not under a licence asked for (MIT)"] == 1


def test_the_words_of_a_project_can_be_given(repository: Path) -> None:
    commit(repository, "Let clamp know its lower bound", ranges_py=FIXED)
    assert mined(repository)[0] == []
    assert len(mined(repository, "^Let .* know")[0]) == 1


@pytest.mark.parametrize(
    ("subject", "body", "fixes"),
    [
        ("Fix a crash on empty input", "", True),
        ("parser: handle overflow in lengths", "", True),
        ("Handle empty input", "Fixes #12", True),
        ("Handle empty input", "Fixes: 1234567890ab (begin)", True),
        ("Handle empty input", "", False),
        ("Fix typo", "", False),
        ("Fix compiler warnings", "", False),
        ("docs: fix the example", "", False),
        ('Revert "Fix a crash"', "", False),
        ("Add a prefix to names", "", False),
        ("Debug the loader", "", False),
    ],
)
def test_a_message_names_a_fix_by_its_subject_or_a_reference(subject: str, body: str, fixes: bool) -> None:
    assert is_fix(Commit("", "", subject, body)) == fixes
