"""`mft data mine`: folders of chat_rounds, counts on the screen and in mining.json, an exam, mistakes in a line."""

import json
import subprocess
from pathlib import Path

from mftcoder.benchmarks.catalogue import expand, load
from mftcoder.benchmarks.families.exam import solution
from tests.forked import run as mft

CODE = '''
def moved(value, low, high):
    """Return value moved into the range from low to high."""
    if value < low:
        return low
    return high if value > high else value
'''


def test_a_folder_becomes_task_folders_that_repeat_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    for n in range(20):
        (tmp_path / "code" / f"m{n}.py").write_text(CODE.replace("moved", f"moved_{n}"))
    for out in ("a", "b"):
        done = mft("data", "mine", str(tmp_path / "code"), "--out", str(tmp_path / out), "--tasks", "repair_function")
        assert done.returncode == 0, done.stderr
    files = [tmp_path / out / "repair_function" / "train.jsonl" for out in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    record = json.loads(files[0].read_text().splitlines()[0])
    assert [turn["role"] for turn in record["chat_rounds"]] == ["human", "bot"]
    counts = json.loads((tmp_path / "a" / "mining.json").read_text())
    assert sum(counts["examples"]["repair_function"].values()) == 20


def test_without_a_share_there_is_no_validation_file(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "m.py").write_text(CODE)
    arguments = ("data", "mine", str(tmp_path / "code"), "--out", str(tmp_path / "out"), "--tasks", "write_docstring")
    assert mft(*arguments, "--valid-share", "0").returncode == 0
    assert [path.name for path in (tmp_path / "out" / "write_docstring").iterdir()] == ["train.jsonl"]


def test_mistakes_end_with_exit_code_2_and_nothing_written(tmp_path: Path) -> None:
    done = mft("data", "mine", str(tmp_path / "none"), "--out", str(tmp_path / "out"), "--tasks", "repair_fn")
    assert done.returncode == 2
    assert "unknown task 'repair_fn'. Did you mean 'repair_function'?" in done.stderr
    assert "no such folder" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_exam_is_written_sat_scored_and_shown_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    for n in range(12):
        (tmp_path / "code" / f"m{n}.py").write_text(CODE.replace("moved", f"moved_{n}"))
    exam, data, scores = tmp_path / "exam", tmp_path / "data", tmp_path / "scores"
    done = mft("data", "mine", str(tmp_path / "code"), "--out", str(data), "--exam", str(exam), "--exam-share", "0.4")
    assert done.returncode == 0, done.stderr
    counts = json.loads((data / "mining.json").read_text())
    benchmarks = {name: load(name, exam) for name in expand(["exam"])}
    assert {f"exam-{kind}": count for kind, count in counts["exam"].items()} == {
        name: len(benchmark.problems) for name, benchmark in benchmarks.items()
    }
    assert (data / "write_asserts" / "train.jsonl").is_file()
    scores.mkdir()
    answered = {"base": lambda problem: "", "tuned": solution}
    for name, benchmark in benchmarks.items():
        for model, answer in answered.items():
            answers = [[answer(problem)] for problem in benchmark.problems]
            (scores / f"generations_{name}_{model}.json").write_text(json.dumps(answers))
            settings = {"mode": "chat", "prefix": "", "suffix": ""}
            (scores / f"settings_{name}_{model}.json").write_text(json.dumps(settings))
    done = mft(
        "evaluate", *map(str, sorted(scores.glob("generations_*"))), "--data-dir", str(exam), "--sandbox", "process"
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"kind": "validation", "step": 0, "losses": {"tests": 1.0}}\n')
    metrics = [f"--metrics={path}" for path in sorted(scores.glob("metrics_*"))]
    assert mft("report", str(run), "--data-dir", str(exam), *metrics).returncode == 0
    text = (run / "report.md").read_text()
    for name, benchmark in benchmarks.items():
        count = len(benchmark.problems)
        assert f"| {name} | {count} | 0% | 100% | {count} | 0 | +100 (" in text
        assert f"## Answers: {name}" in text
        assert f"### {benchmark.problems[0].id}" in text
        assert "    " + benchmark.problems[0].fields["instruction"].splitlines()[0] in text
    assert '<article class="question">' in (run / "report.html").read_text()


def test_an_exam_that_cannot_be_made_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "m.py").write_text(CODE)
    arguments = (
        "data",
        "mine",
        str(tmp_path / "code"),
        "--out",
        str(tmp_path / "out"),
        "--exam",
        str(tmp_path / "exam"),
    )
    done = mft(*arguments, "--valid-share", "0", "--exam-share", "0.01")
    assert (done.returncode, "no function of the modules held out can be examined" in done.stderr) == (2, True)
    assert mft(*arguments, "--valid-share", "0.5", "--exam-share", "0.5").stderr.startswith("error: --valid-share and")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "exam").exists()


def test_the_fixes_of_a_log_are_mined_alone_or_beside_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    names = ("-c", "user.name=a", "-c", "user.email=a@b")
    for text, message in ((CODE.replace("<", ">="), "Begin"), (CODE, "Fix the lower bound")):
        (folder / "m.py").write_text(text)
        for arguments in (("init", "-q"), ("add", "-A"), (*names, "commit", "-q", "-m", message)):
            subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    done = mft("data", "mine", "--history", str(folder), "--out", str(tmp_path / "alone"), "--valid-share", "0")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "alone").iterdir() if path.is_dir()] == ["repair_history"]
    record = json.loads((tmp_path / "alone" / "repair_history" / "train.jsonl").read_text())
    assert "value >= low" in record["chat_rounds"][0]["content"]
    arguments = ("--history", str(folder), "--out", str(tmp_path / "both"), "--valid-share", "0")
    assert mft("data", "mine", str(folder), *arguments).returncode == 0
    assert {"repair_history", "write_function"} <= {path.name for path in (tmp_path / "both").iterdir()}
    for wrong, message in {
        ("--history", str(tmp_path)): "cannot be read as a git repository",
        ("--history", str(folder), "--fix-pattern", "("): "--fix-pattern: not a regular expression",
        ("--history", str(folder), "--exam", str(tmp_path / "exam")): "Give FOLDER beside --history",
        ("--fix-pattern", "x"): "--fix-pattern is about --history",
        ("--stdlib", "--history", str(folder)): "or else --stdlib",
    }.items():
        done = mft("data", "mine", *wrong, "--out", str(tmp_path / "wrong"))
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "wrong").exists()


def test_every_option_reaches_the_mining(tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "m.py").write_text(CODE)
    (folder / "n.py").write_text(
        "# SPDX-License-Identifier: MIT\nimport os\n"
        + CODE.replace("moved(", "other(").replace("return low", "return os")
    )
    arguments = ("data", "mine", str(folder), "--valid-share", "0")
    done = mft(*arguments, "--out", str(tmp_path / "a"), "--context", "--tasks", "complete_line", "--licenses", "mit")
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "a" / "complete_line" / "train.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["license"] == "MIT"
    assert "Its repository has:\n\n```python\nimport os\n```" in record["chat_rounds"][0]["content"]
    assert json.loads((tmp_path / "a" / "mining.json").read_text())["licenses"] == {"MIT": 1}
    assert "licences: MIT: 1" in done.stderr
    done = mft(*arguments, "--out", str(tmp_path / "b"), "--languages", "go")
    assert (done.returncode, "no file of go in it or below it (.go)" in done.stderr) == (2, True)
    for wrong, message in {
        ("--context", "--tasks", "repair_function"): "--context: no task of --tasks shows it",
        ("--tasks", "translate", "--languages", "go"): "needs two languages",
        ("--languages", "pyton"): "unknown language 'pyton'. Did you mean 'python'?",
        ("--languages", "go", "--exam", str(tmp_path / "exam")): "an exam is made of Python functions",
    }.items():
        done = mft(*arguments, *wrong, "--out", str(tmp_path / "b"))
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "b").exists()
