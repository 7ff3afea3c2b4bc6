"""`mft data curate`: what comes out, what is said of bad input, and what a killed run leaves."""

import gzip
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mftcoder.app.data.curate import curate
from mftcoder.config.data import TaskConfig
from mftcoder.curation.example import Example
from mftcoder.curation.filters import lint
from mftcoder.curation.filters.config import FilterConfig
from mftcoder.curation.pipeline import run as running
from mftcoder.curation.pipeline.recipe import load_recipe, parse_recipe
from mftcoder.curation.statistics import Statistics
from mftcoder.data.records.files import find_sources
from mftcoder.data.records.formats import read_record
from mftcoder.errors import ConfigError, DataError

FIELDS = [
    ("instruction", "output"),
    ("prompt", "completion"),
    ("question", "answer"),
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFTCODER_CACHE", str(tmp_path / "cache"))


def line(number: int, words: int = 5) -> bytes:
    """A record in one of several dialects, with an answer of so many words."""
    asked, answered = FIELDS[number % len(FIELDS)]
    return json.dumps({asked: f"Question {number}?", answered: " ".join(["word"] * words), "id": number}).encode()


def recipe(folder: Path, **fields: Any) -> Any:
    raw = {
        "tasks": {"a": str(folder / "a")},
        "steps": [{"filter": {"answer_words": [3, 10]}}],
        "output_dir": str(folder / "out"),
        **fields,
    }
    return parse_recipe(raw, origin="recipe.yaml")


def write(path: Path, *lines: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"\n".join(lines) + b"\n"
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def records(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_kept_records_stay_byte_for_byte_and_dropped_ones_are_named(tmp_path: Path) -> None:
    source = write(tmp_path / "a" / "x.jsonl", line(0), line(1, words=2), line(2), line(3, words=11))
    curate(recipe(tmp_path))
    assert (tmp_path / "out" / "a" / "train.jsonl").read_bytes() == line(0) + b"\n" + line(2) + b"\n"
    assert records(tmp_path / "out" / "dropped.jsonl") == [
        {"task": "a", "step": "1-filter", "rule": "answer_words", "value": 2, "origin": f"{source}:2"},
        {"task": "a", "step": "1-filter", "rule": "answer_words", "value": 11, "origin": f"{source}:4"},
    ]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["read"], manifest["kept"]) == (4, 2)
    assert manifest["steps"][1] == {"step": "1-filter", "dropped": {"answer_words": 2}, "left": 2}
    assert "| 1-filter: answer_words | 2 | 50.0% |" in (tmp_path / "out" / "README.md").read_text()


def test_the_statistics_of_what_is_kept_are_those_of_the_written_files(tmp_path: Path) -> None:
    texts = [
        f"```{name}\nx = {number}\n```" + " word" * number for number, name in enumerate(("py", "go", "", "c") * 5)
    ]
    lines = [
        json.dumps({"prompt": f"Question {n}", "completion": text, "license": f"L{n % 3}"})
        for n, text in enumerate(texts)
    ]
    write(tmp_path / "a" / "x.jsonl", *(text.encode() for text in [*lines, *lines[3:9], "{"]))
    steps = [
        {"filter": {"answer_words": [8, None]}},
        "dedup",
        {"filter": {"answer_words": [None, 20]}},
        {"dedup": {"near": False}},
    ]
    manifest = curate(recipe(tmp_path, steps=steps)).manifest
    counted = Statistics()
    for number, text in enumerate((tmp_path / "out" / "a" / "train.jsonl").read_bytes().splitlines()):
        counted.add(Example(read_record(text, format="auto", task="a", origin=str(number)), text))
    assert 0 < counted.records < len(lines)
    assert manifest["after"] == counted.as_json() == manifest["tasks"]["a"]["after"]
    assert manifest["before"]["records"] == len(lines) + 6


def test_what_a_private_rule_finds_stands_in_no_file_of_the_result(tmp_path: Path) -> None:
    private = b'{"prompt": "Who wrote it?", "completion": "It was m.kowalska@wroclaw.pl, a long time ago."}'
    write(tmp_path / "a" / "x.jsonl", line(0), private)
    curate(recipe(tmp_path, steps=[{"filter": ["personal_data"]}]))
    assert records(tmp_path / "out" / "dropped.jsonl")[0]["rule"] == "personal_data"
    assert not [name for name, content in contents(tmp_path / "out").items() if b"wroclaw" in content]


def test_lines_that_cannot_be_read_are_dropped_by_name_and_the_rest_is_kept(tmp_path: Path) -> None:
    bad = [
        b'{"instruction": "half a li',
        b"\xff\xfe{}",
        b"[1]",
        b'{"foreign": 1}',
        b'{"prompt": "a", "prompt": "b", "completion": "c"}',
    ]
    source = write(tmp_path / "a" / "x.jsonl", line(0), *bad[1:], b"", line(1), bad[0])
    curate(recipe(tmp_path))
    dropped = records(tmp_path / "out" / "dropped.jsonl")
    assert [entry["origin"] for entry in dropped] == [f"{source}:{number}" for number in (2, 3, 4, 5, 8)]
    assert {(entry["step"], entry["rule"]) for entry in dropped} == {("read", "unusable")}
    said = [entry["value"] for entry in dropped]
    for part, value in zip(
        ("byte 1 is not UTF-8", "not a list", "unknown dialect", "appears twice", "not valid JSON"),
        said,
        strict=True,
    ):
        assert part in value
    assert len(records(tmp_path / "out" / "a" / "train.jsonl")) == 2


def test_validation_files_stay_apart_and_the_folder_of_a_task_is_training_only(tmp_path: Path) -> None:
    write(tmp_path / "a" / "train.jsonl", line(0), line(1))
    held_out = write(tmp_path / "a" / "valid.jsonl.gz", line(2), line(3, words=1))
    curate(recipe(tmp_path, tasks={"a": {"path": str(tmp_path / "a"), "validation": str(held_out)}}))
    out = tmp_path / "out"
    task = TaskConfig(name="a", path=str(out / "a"), validation=(str(out / "validation" / "a.jsonl"),))
    found = find_sources([task], tmp_path / "cache")[0]
    assert [file.path.read_bytes() for file in found.training] == [line(0) + b"\n" + line(1) + b"\n"]
    assert [file.path.read_bytes() for file in found.validation] == [line(2) + b"\n"]


def test_the_result_does_not_depend_on_processes_or_on_a_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(running, "_SMALL_INPUT", 0)
    write(tmp_path / "a" / "x.jsonl", *(line(number, words=number % 14) for number in range(1, 400) if number % 14))
    results = []
    for processes in (1, 2):
        curate(recipe(tmp_path, num_proc=processes, output_dir=str(tmp_path / "out")))
        results.append(contents(tmp_path / "out"))
        (tmp_path / "out").rename(tmp_path / f"out{processes}")
    assert results[0] == results[1]


def test_a_finished_curation_is_not_made_again_and_a_changed_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a" / "x.jsonl", line(0), line(1))
    curate(recipe(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr("mftcoder.app.data.curate.run_steps", lambda *_: pytest.fail("was made again"))
        curate(recipe(tmp_path))
    write(source, line(0), line(1), line(2))
    assert curate(recipe(tmp_path)).manifest["kept"] == 3
    (tmp_path / "out" / "a" / "train.jsonl").write_bytes(line(0))
    assert curate(recipe(tmp_path)).manifest["kept"] == 3
    assert len(records(tmp_path / "out" / "a" / "train.jsonl")) == 3


def test_a_stopped_run_goes_on_with_its_finished_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "BLOCK_BYTES", 1000)
    write(tmp_path / "a" / "x.jsonl", *(line(number) for number in range(100)))
    done: list[str] = []

    def stop(what: str, *_: object) -> None:
        done.append(what)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(recipe(tmp_path), on_progress=stop)
    finished = sorted((tmp_path / ".out.work").rglob("*.json"))
    assert len(finished) == 3
    times = [path.stat().st_mtime_ns for path in finished]
    kept = []
    made = curate(recipe(tmp_path), on_progress=lambda *_: kept.append([path.stat().st_mtime_ns for path in finished]))
    assert kept and all(seen == times for seen in kept)
    assert made.manifest["kept"] == 100
    assert [record["id"] for record in records(tmp_path / "out" / "a" / "train.jsonl")] == list(range(100))
    assert not (tmp_path / ".out.work").exists()


def test_blocks_that_a_crash_of_the_machine_emptied_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are not flushed to disk: after a crash their files may be empty beside a whole report."""
    monkeypatch.setattr(running, "BLOCK_BYTES", 1000)
    write(tmp_path / "a" / "x.jsonl", *(line(number, words=2 + number % 2) for number in range(100)))
    with monkeypatch.context() as patched:
        patched.setattr("mftcoder.app.data.curate.write_output", lambda *_: sys.exit("crashed"))
        with pytest.raises(SystemExit):
            curate(recipe(tmp_path))
    for ending in ("kept", "dropped"):
        path = sorted((tmp_path / ".out.work").rglob(f"*.{ending}"))[1]
        path.write_bytes(bytes(path.stat().st_size))
    curate(recipe(tmp_path))
    assert [record["id"] for record in records(tmp_path / "out" / "a" / "train.jsonl")] == list(range(1, 100, 2))
    assert len(records(tmp_path / "out" / "dropped.jsonl")) == 50


def test_work_that_a_killed_command_left_beside_its_result_is_removed(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.jsonl", line(0))
    curate(recipe(tmp_path))
    (tmp_path / ".out.work" / "0123456789abcdef").mkdir(parents=True)
    curate(recipe(tmp_path))
    assert not (tmp_path / ".out.work").exists()


def test_a_tool_that_is_slow_to_start_is_started_once_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ruff")
    codes = (f"```python\nx = {number}\nprint(y)\n```" for number in range(150))
    write(tmp_path / "a" / "x.jsonl", *(json.dumps({"prompt": "P", "completion": code}).encode() for code in codes))
    starts = []
    run = lint._run
    monkeypatch.setattr(lint, "_run", lambda folder: starts.append(folder) or run(folder))  # type: ignore[func-returns-value]
    assert curate(recipe(tmp_path, steps=[{"filter": ["code_blocks", "lint_errors"]}])).manifest["kept"] == 0
    assert len(starts) == 1
    assert len(records(tmp_path / "out" / "dropped.jsonl")) == 150


def test_a_killed_command_goes_on_without_loss_or_repetition(tmp_path: Path) -> None:
    """A real process, killed while blocks of it are finished and others are not."""
    write(tmp_path / "a" / "x.jsonl", *(line(number, words=3 + number % 3) for number in range(4000)))
    config = tmp_path / "recipe.yaml"
    config.write_text(
        json.dumps(
            {
                "tasks": {"a": str(tmp_path / "a")},
                "steps": [{"filter": {"answer_words": [4, 10]}}],
                "output_dir": str(tmp_path / "out"),
            }
        )
    )
    program = (
        "import os, signal; from mftcoder.curation.pipeline import run, blocks; run.BLOCK_BYTES = 5000; check = blocks._BlockWork.count\n"
        "counted = 0\ndef die_at(self, record):\n    global counted; counted += 1\n"
        "    if counted == {record}: os.kill(os.getpid(), signal.SIGKILL)\n    return check(self, record)\n"
        f"blocks._BlockWork.count = die_at; from mftcoder.cli import main; main(['data', 'curate', {str(config)!r}])"
    )
    killed = subprocess.run([sys.executable, "-c", program.format(record=2000)], stdout=subprocess.DEVNULL)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / ".out.work").rglob("*.json"))) > 5
    assert not (tmp_path / "out").exists()
    subprocess.run([sys.executable, "-c", program.format(record=0)], check=True, stdout=subprocess.DEVNULL)
    assert [record["id"] for record in records(tmp_path / "out" / "a" / "train.jsonl")] == [
        n for n in range(4000) if n % 3
    ]
    assert len(records(tmp_path / "out" / "dropped.jsonl")) == len([n for n in range(4000) if n % 3 == 0])


def test_a_folder_with_files_of_others_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.jsonl", line(0))
    write(tmp_path / "out" / "mine.txt", b"keep me")
    with pytest.raises(DataError, match=r"holds files that no curation has written: mine\.txt"):
        curate(recipe(tmp_path))
    assert (tmp_path / "out" / "mine.txt").exists()


def test_an_output_that_the_next_run_would_read_as_data_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.jsonl", line(0))
    with pytest.raises(DataError, match=r"lies in .*a, which is an input"):
        curate(recipe(tmp_path, output_dir=str(tmp_path / "a" / "clean")))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["x.jsonl"]


def test_two_processes_do_not_write_one_output(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.jsonl", line(0))
    with running.exclusive(tmp_path / ".out.work"), pytest.raises(DataError, match="another process is at work"):
        curate(recipe(tmp_path))


def test_a_cut_gz_file_is_an_error_and_an_empty_file_is_noted(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.jsonl", line(0))
    write(tmp_path / "a" / "y.jsonl", b"")
    assert curate(recipe(tmp_path)).manifest["notes"] == [f"{tmp_path / 'a' / 'y.jsonl'}: is empty"]
    cut = write(tmp_path / "a" / "z.jsonl.gz", *(line(number) for number in range(100)))
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"z\.jsonl\.gz: cannot be read"):
        curate(recipe(tmp_path))
    assert not (tmp_path / ".out.work").exists()  # the mended file is another input: nothing of it would be used


def test_the_verb_prints_nothing_and_a_result_without_records_is_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints the tables, and says that nothing is left."""
    write(tmp_path / "a" / "x.jsonl", line(0, words=1))
    assert curate(recipe(tmp_path)).manifest["kept"] == 0
    assert capsys.readouterr() == ("", "")


def test_an_insisted_format_is_part_of_the_tasks_that_are_printed(tmp_path: Path) -> None:
    both = json.dumps({"text": "one two three four", "prompt": "p", "completion": "c d e f"}).encode()
    write(tmp_path / "a" / "x.jsonl", both)
    made = curate(recipe(tmp_path, tasks={"a": {"path": str(tmp_path / "a"), "format": "text"}}))
    assert made.task_lines() == ["tasks:", f"  a: {{path: {tmp_path / 'out' / 'a'}, format: text}}"]


def test_the_recipe_of_the_published_set_has_the_bounds_of_its_preset() -> None:
    published = load_recipe(Path(__file__).parents[4] / "recipes" / "evol_66k.yaml")
    assert published.steps[0].filter == FilterConfig.model_validate("evol_66k")


def test_mistakes_of_a_recipe_are_all_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("tasks: {validation: {path: x, weight: 2}}\nsteps: [filter: evil, {fliter: 1}]\noutput: y\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    text = "\n".join(caught.value.problems)
    for part in (
        "a task cannot be named validation",
        "validation.weight: does nothing in a recipe",
        "unknown preset 'evil'",
        "steps.1.fliter: unknown key. Did you mean 'filter'?",
        "output: unknown key. Did you mean 'output_dir'?",
        "output_dir: is required",
    ):
        assert part in text
    assert "at least 1 item" not in text


def test_duplicates_are_dropped_over_tasks_and_name_the_record_that_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    text = " ".join(f"word{number}" for number in range(40))
    same = [json.dumps({"prompt": "Say it.", "completion": f"{text}{end}"}).encode() for end in ("", " more", "")]
    first = write(tmp_path / "a" / "x.jsonl", same[0], line(0))
    second = write(tmp_path / "b" / "x.jsonl", same[1], same[2])
    tasks = {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}
    made = curate(recipe(tmp_path, tasks=tasks, steps=["dedup", {"filter": {"answer_words": [6, None]}}]))
    dropped = {entry["origin"]: entry for entry in records(tmp_path / "out" / "dropped.jsonl")}
    assert dropped[f"{first}:1"]["duplicate_of"] == f"{second}:1"
    assert dropped[f"{second}:2"]["duplicate_of"] == f"{second}:1"
    assert dropped[f"{first}:1"]["value"] == pytest.approx(37 / 38, abs=1e-4)  # the question is one n-gram
    assert (dropped[f"{first}:2"]["step"], made.manifest["kept"]) == ("2-filter", 1)
    assert [step["left"] for step in made.manifest["steps"]] == [4, 2, 1]
    assert made.manifest["before"]["records"] == 4


def test_a_filter_starts_without_what_other_steps_and_the_card_need() -> None:
    """Their imports took longer than filtering a few thousand records. numpy also starts threads, and a process with threads forks
    no workers: near-duplicates import it behind the first block."""
    slow = [
        "numpy",
        "matplotlib",
        "jinja2",
        "ruamel.yaml",
        "mftcoder.config.schema",
        "mftcoder.benchmarks",
        "mftcoder.execution.pool",
    ]
    modules = "mftcoder.app.data.curate, mftcoder.curation.pipeline.dedup"
    code = f"import sys, {modules}; print([name for name in {slow} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
