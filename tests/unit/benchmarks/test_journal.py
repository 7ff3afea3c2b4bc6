"""The journal of an evaluation: which results of an earlier run count."""

import json
import stat

import pytest

from mftcoder.benchmarks.journal import Journal, own_secret
from mftcoder.errors import ExecutionError
from mftcoder.execution.sandbox import ExecutionResult

SETTINGS = {"limits": {"seconds": 3.0}, "data": "file sha256 1"}
SECRET = b"x" * 32
FAILED = ExecutionResult("failed", 1, "out", "err", 0.123456789)


@pytest.fixture
def journal(tmp_path):
    """A file of ten results."""
    path = tmp_path / "results.jsonl"
    with Journal(path, SETTINGS, SECRET) as writer:
        for number in range(10):
            writer.add(f"p/{number}#0", f"{number:064x}", FAILED)
    return path


def known(path, settings=SETTINGS, secret=SECRET):
    with Journal(path, settings, secret) as reader:
        return reader.known, reader.refused


def test_written_results_are_read_again(journal):
    found, refused = known(journal)
    assert len(found) == 10 and refused == 0
    assert found["p/3#0", f"{3:064x}"] == FAILED


@pytest.mark.parametrize(
    "edit",
    [
        lambda row: row["result"].update(status="passed"),
        lambda row: row.update(program="f" * 64),
        lambda row: row.update(key="p/4#0"),
        lambda row: row.update(digest="0" * 64),
        lambda row: row.pop("digest"),
        lambda row: row.update(result=None),
        lambda row: row.clear(),
    ],
)
def test_an_edited_line_is_refused_and_counted(journal, edit):
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    edit(lines[4])
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, refused = known(journal)
    assert len(found) == 9 and refused == 1
    assert all(result == FAILED for result in found.values())


def test_results_of_another_users_mft_do_not_count(journal):
    assert known(journal, secret=b"y" * 32) == ({}, 10)


def test_results_under_other_settings_or_data_do_not_count(journal):
    assert known(journal, {**SETTINGS, "data": "file sha256 2"}) == ({}, 0)


def test_a_forged_settings_line_does_not_make_results_count(journal):
    lines = journal.read_text().splitlines()
    other = {**SETTINGS, "data": "file sha256 2"}
    journal.write_text("\n".join([json.dumps({"settings": other}), *lines[1:]]) + "\n")
    assert known(journal, other) == ({}, 10)


def test_a_line_that_a_crash_truncated_is_the_only_one_lost(journal):
    text = journal.read_text()
    journal.write_text(text[:-20])
    assert len(known(journal)[0]) == 9


def test_strings_that_utf8_cannot_encode_are_written_and_read_again(tmp_path):
    """A lone surrogate, which an answer's exception may contain."""
    path = tmp_path / "results.jsonl"
    with Journal(path, SETTINGS, SECRET) as writer:
        writer.add("a#0", "1", ExecutionResult("failed", stderr="ValueError: \ud800"))
        writer.add("b#0", "2", FAILED)
    found, refused = known(path)
    assert refused == 0 and found["a#0", "1"].stderr == "ValueError: \\ud800" and found["b#0", "2"] == FAILED
    assert len(known(path)[0]) == 2  # and so it is when the file was written anew


def test_a_journal_that_another_evaluation_writes_is_refused_and_loses_nothing(tmp_path):
    path = tmp_path / "results.jsonl"
    with Journal(path, SETTINGS, SECRET) as writer:
        writer.add("a#0", "1", FAILED)
        with pytest.raises(ExecutionError, match="another process is writing into it"):
            Journal(path, SETTINGS, SECRET)
        writer.add("b#0", "2", FAILED)
    assert len(known(path)[0]) == 2


def test_sandbox_errors_are_not_remembered(tmp_path):
    path = tmp_path / "results.jsonl"
    with Journal(path, SETTINGS, SECRET) as writer:
        writer.add("a#0", "1", ExecutionResult("sandbox_error"))
    assert known(path) == ({}, 0)


def test_the_key_is_made_once_and_for_its_user_only(tmp_path):
    path = tmp_path / "cache/journal.key"
    secret = own_secret(path)
    assert len(secret) == 32 and own_secret(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["journal.key"]


def test_without_a_place_for_a_key_each_run_has_its_own(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file/journal.key"
    assert own_secret(path) != own_secret(path)
