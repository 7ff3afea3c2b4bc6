"""`mft evaluate` on real files, in a process of its own."""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from mftcoder.cli import main
from mftcoder.errors import ExecutionError
from mftcoder.execution.pool import Pool

SHARED = Path(os.environ.get("MFTCODER_SHARED", Path(__file__).parents[2].parent / "shared"))
ATTACKS = Path(__file__).parents[1] / "attacks/python"
MINI = Path(__file__).parents[2] / "src/mftcoder/benchmarks/families/mini.jsonl"

needs_data = pytest.mark.skipif(not (SHARED / "data/humaneval").is_dir(), reason="the benchmarks' data is not here")


def rows(path):
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in file]


def mft(*arguments, cwd, check=True, **environment):
    command = [sys.executable, "-m", "mftcoder", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=300, env={**os.environ, **environment}
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def metrics(folder, name):
    return json.loads((folder / f"metrics_{name}.json").read_text())


def write_answers(folder, name, answers):
    path = folder / f"generations_{name}.json"
    path.write_text(json.dumps([[answer] for answer in answers]))
    return path


def test_the_projects_own_benchmark_is_sound(tmp_path):
    """Its references all pass, nothing else does."""
    problems = rows(MINI)
    right = write_answers(tmp_path, "mini_right", [row["canonical_solution"] for row in problems])
    empty = write_answers(tmp_path, "mini_empty", ["" for _ in problems])
    done = mft("evaluate", right, empty, cwd=tmp_path)
    assert metrics(tmp_path, "mini_right")["scores"]["pass@1"]["value"] == 1.0
    assert metrics(tmp_path, "mini_empty")["scores"]["pass@1"]["value"] == 0.0
    assert "1.0000" in done.stdout and "sandbox:" in done.stderr


@needs_data
@pytest.mark.parametrize("field", ["canonical_solution", None], ids=["references", "empty"])
def test_humaneval_scores_its_references_and_nothing_else(tmp_path, field):
    problems = rows(SHARED / "data/humaneval/HumanEval.jsonl.gz")
    path = write_answers(tmp_path, "humaneval_m", [row[field] if field else "" for row in problems])
    mft("evaluate", path, "--data-dir", SHARED / "data", "--out", tmp_path / "out", cwd=tmp_path)
    result = metrics(tmp_path / "out", "humaneval_m")
    assert result["scores"]["pass@1"]["value"] == (1.0 if field else 0.0)
    assert [problem["id"] for problem in result["problems"]] == [row["task_id"] for row in problems]


@needs_data
@pytest.mark.parametrize(
    "field",
    [
        pytest.param("code", id="references"),
        pytest.param(None, id="empty"),
    ],
)
@pytest.mark.slow(reason="500 programs; HumanEval has the same in 164")
def test_mbpp_scores_its_references_and_nothing_else(tmp_path, field):
    problems = [row for row in rows(SHARED / "data/mbpp/mbpp.jsonl.gz") if 11 <= row["task_id"] <= 510]
    path = write_answers(tmp_path, "mbpp_m", [row[field] if field else "" for row in problems])
    mft("evaluate", path, "--data-dir", SHARED, cwd=tmp_path)
    assert metrics(tmp_path, "mbpp_m")["scores"]["pass@1"]["value"] == (1.0 if field else 0.0)


def test_the_chosen_imports_decide_what_passes_and_stand_in_the_result(tmp_path):
    """An answer that forgot its import passes behind the reference harness's header only."""
    for imports, passed in (("none", 0), ("reference", 1)):
        path = write_answers(tmp_path, f"mini_{imports}", ["    return math.gcd(2, 4) * number\n"])
        mft("evaluate", path, "--imports", imports, "--limit", "1", cwd=tmp_path)
        result = metrics(tmp_path, f"mini_{imports}")
        assert result["scores"]["pass@1"]["value"] == passed
        assert result["settings"]["header"].startswith("the reference" if passed else "none")


def test_rows_of_several_samples_give_pass_at_k(tmp_path):
    problems = rows(MINI)[:4]
    samples = [
        {"task_id": row["task_id"], "completion": row["canonical_solution"] if (number + sample) % 2 else "    pass\n"}
        for number, row in enumerate(problems)
        for sample in range(4)
    ]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in samples))
    mft("evaluate", path, "--task", "mini", "--limit", "4", "-k", "1,2,4", cwd=tmp_path)
    scores = metrics(tmp_path, "mini_samples")["scores"]
    # Two of four pass: one draw hits in 1/2, two draws both miss in C(2,2)/C(4,2) = 1/6.
    assert [scores[f"pass@{k}"]["value"] for k in (1, 2, 4)] == pytest.approx([1 / 2, 5 / 6, 1])


def test_a_killed_run_goes_on_without_running_again_what_is_done(tmp_path):
    slow = "    import time\n    time.sleep(0.4)\n"
    problems = rows(MINI)[:10]
    path = write_answers(tmp_path, "mini_slow", [slow + row["canonical_solution"] for row in problems])
    command = [sys.executable, "-m", "mftcoder", "evaluate", str(path), "--limit", "10", "--workers", "1"]
    run = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / "results_mini_slow.jsonl"
    while not journal.exists() or journal.read_text().count("\n") < 3:
        time.sleep(0.05)
        assert run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")][1:]
    mft("evaluate", path, "--limit", "10", "--workers", "2", cwd=tmp_path)
    after = [json.loads(line) for line in journal.read_text().splitlines()]
    assert after[1 : len(done) + 1] == done  # kept, with their times
    assert len(after) == 1 + len(problems)


def test_equal_answers_to_a_problem_run_once(tmp_path):
    row = rows(MINI)[0]
    toss = "    import os\n    assert os.urandom(1)[0] % 2\n" + row["canonical_solution"]
    path = tmp_path / "toss.jsonl"
    path.write_text((json.dumps({"task_id": row["task_id"], "completion": toss}) + "\n") * 24)
    mft("evaluate", path, "--task", "mini", "--limit", "1", cwd=tmp_path)
    [problem] = metrics(tmp_path, "mini_toss")["problems"]
    assert len(problem["statuses"]) == 24
    assert len(set(problem["statuses"])) == 1  # else 1 in 8 million


@pytest.fixture
def open_folder():
    """A folder for temporary files that nobody else uses and programs of another user can reach, unlike pytest's."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="temporary-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.slow(reason="each attack costs its whole time limit")
@pytest.mark.parametrize("level", ["namespaces", "process"])
def test_a_file_of_attacks_alone_ends_normally_with_nothing_passed_and_nothing_left(tmp_path, open_folder, level):
    if level == "namespaces" and not namespaces_are_there():
        pytest.skip("no namespaces on this machine")
    attacks = [path.read_text() for path in sorted(ATTACKS.glob("*.py")) if not path.stem.startswith("honest")]
    row = rows(MINI)[0]
    path = tmp_path / "attacks.jsonl"
    completions = [attack.replace("twice", row["entry_point"]) for attack in attacks]
    path.write_text("".join(json.dumps({"task_id": row["task_id"], "completion": text}) + "\n" for text in completions))
    arguments = ("--task", "mini", "--limit", "1", "--timeout", "1", "--memory-mb", "512", "--sandbox", level)
    done = mft("evaluate", path, *arguments, cwd=tmp_path, TMPDIR=str(open_folder))
    [problem] = metrics(tmp_path, "mini_attacks")["problems"]
    assert len(problem["statuses"]) == len(attacks) > 20
    assert not {"passed", "sandbox_error"} & set(problem["statuses"]), done.stderr
    assert not list(open_folder.iterdir())
    assert not [process for process in psutil.process_iter() if str(tmp_path) in " ".join(command_of(process))]


def write_problems(folder, tests):
    """A folder of data with problems in HumanEval's format, one for each of these tests; every answer is right for them."""
    (folder / "data/humaneval").mkdir(parents=True)
    lines = [
        {
            "task_id": f"p/{number}",
            "prompt": "def f(x):\n",
            "entry_point": "f",
            "canonical_solution": "    return x\n",
            "test": test,
        }
        for number, test in enumerate(tests)
    ]
    path = folder / "data/humaneval/HumanEval.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return write_answers(folder, "humaneval_m", ["    return x\n" for _ in tests])


SOUND = "def check(f):\n    assert f(1) == 1\n"
BREAKS_WITH_THE_ANSWER = "import os\ndef check(f):\n    f(1)\n    f(2)\n    os._exit(1)\n"
BREAKS_ALWAYS = "import os\nos._exit(1)\n"


def test_answers_that_break_their_sandbox_count_as_failed(tmp_path):
    """Were they left out, a file of one right answer and many of these would score 1."""
    path = write_problems(tmp_path, [SOUND, BREAKS_WITH_THE_ANSWER, BREAKS_WITH_THE_ANSWER, SOUND])
    mft("evaluate", path, "--data-dir", tmp_path / "data", "--timeout", "1", cwd=tmp_path)
    result = metrics(tmp_path, "humaneval_m")
    assert result["scores"]["pass@1"]["value"] == 0.5
    assert result["scores"]["pass@1"]["problems"] == 4
    assert result["programs"]["failed"] == 2


def test_without_a_verdict_on_every_answer_there_is_no_score_and_exit_code_1(tmp_path):
    path = write_problems(tmp_path, [SOUND, BREAKS_ALWAYS, SOUND])
    done = mft("evaluate", path, "--data-dir", tmp_path / "data", "--timeout", "1", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "1 programs could not be judged, so there is no score" in " ".join(done.stderr.split())
    result = metrics(tmp_path, "humaneval_m")
    assert result["scores"] == {} and result["programs"]["sandbox_error"] == 1
    assert "pass@1" not in done.stdout


def test_an_answer_that_passes_wrong_tests_too_counts_as_cheated_and_not_as_passed(tmp_path):
    holds_for_no_number = "def check(f):\n    assert not abs(f(float('nan')) - 1) > 1e-6\n"
    path = write_problems(tmp_path, [SOUND, holds_for_no_number])
    done = mft("evaluate", path, "--data-dir", tmp_path / "data", cwd=tmp_path)
    result = metrics(tmp_path, "humaneval_m")
    assert result["scores"]["pass@1"]["value"] == 0.5
    assert result["programs"]["passed"] == 1 and result["programs"]["cheated"] == 1
    assert "1 answers pass wrong tests too (cheated), and count as not passed." in " ".join(done.stderr.split())


def test_an_edited_journal_scores_nothing(tmp_path):
    problems = rows(MINI)
    path = write_answers(tmp_path, "mini_wrong", ["" for _ in problems])
    mft("evaluate", path, cwd=tmp_path)
    journal = tmp_path / "results_mini_wrong.jsonl"
    journal.write_text(
        journal.read_text().replace('"status":"failed"', '"status":"passed"').replace('"failed"', '"passed"')
    )
    done = mft("evaluate", path, cwd=tmp_path)
    assert metrics(tmp_path, "mini_wrong")["scores"]["pass@1"]["value"] == 0.0
    assert "50 results of results_mini_wrong.jsonl were not written by this user's mft" in " ".join(done.stderr.split())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_evaluation_leaves_no_folder(tmp_path, number):
    folder = tmp_path / "tmp"
    folder.mkdir(mode=0o755)
    path = write_answers(tmp_path, "mini_slow", ["    import time\n    time.sleep(60)\n" for _ in rows(MINI)])
    command = [sys.executable, "-m", "mftcoder", "evaluate", str(path), "--workers", "2"]
    run = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, "TMPDIR": str(folder)}, stderr=subprocess.PIPE, text=True
    )
    while not list(folder.glob("mft-pool-*/2")):
        time.sleep(0.05)
        assert run.poll() is None
    run.send_signal(number)
    stderr = run.communicate(timeout=300)[1]
    assert run.returncode == (75 if number == signal.SIGTERM else -signal.SIGKILL)
    assert number == signal.SIGKILL or "interrupted. The same command goes on" in stderr
    deadline = time.monotonic() + 300  # for the workers of a run that was killed
    while list(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(folder.iterdir())


def test_a_models_name_is_printed_as_it_is(tmp_path):
    path = write_answers(tmp_path, "mini_[x]", [row["canonical_solution"] for row in rows(MINI)])
    done = mft("evaluate", path, cwd=tmp_path)
    assert "[x]" in done.stdout and "mini_[x]" in done.stderr


def test_compressed_answers_are_read(tmp_path):
    with gzip.open(tmp_path / "generations_mini_m.json.gz", "wt") as file:
        json.dump([[row["canonical_solution"]] for row in rows(MINI)], file)
    mft("evaluate", tmp_path / "generations_mini_m.json.gz", cwd=tmp_path)
    assert metrics(tmp_path, "mini_m")["scores"]["pass@1"]["value"] == 1.0


def command_of(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_an_interpreter_that_lies_in_the_temporary_folder_is_sandboxed_too(tmp_path):
    """Programs get a scratch folder of their own elsewhere, so that none can put another interpreter in its place."""
    if not namespaces_are_there():
        pytest.skip("no namespaces on this machine")
    python = Path(tempfile.mkdtemp(dir="/tmp", prefix="interpreter-")) / "environment/bin/python"
    try:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", python.parents[1]], check=True)
        site = next(python.parents[1].glob("lib/python*/site-packages"))
        (site / "real.pth").write_text("\n".join([str(MINI.parents[3]), *site_packages()]) + "\n")
        problems = rows(MINI)
        path = write_answers(tmp_path, "mini_right", [row["canonical_solution"] for row in problems])
        command = [python, "-m", "mftcoder", "evaluate", path, "--sandbox", "namespaces"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert metrics(tmp_path, "mini_right")["scores"]["pass@1"]["value"] == 1.0
    finally:
        shutil.rmtree(python.parents[2])


def namespaces_are_there():
    try:
        Pool("namespaces", workers=1).close()
    except ExecutionError:
        return False
    return True


def site_packages():
    return [path for path in sys.path if path.endswith("site-packages")]


def test_an_evaluation_imports_no_torch(tmp_path):
    path = write_answers(tmp_path, "mini_m", [row["canonical_solution"] for row in rows(MINI)])
    script = (
        "import sys\nfrom pathlib import Path\nfrom mftcoder.app.scoring.evaluate import evaluate\n"
        f"assert evaluate([Path({str(path)!r})], limit=None).rows()[0]['value'] == 1.0\n"
        "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.json", "--task", "mini"], "missing.json: no such file"),
        (["generations_mini_m.json", "--task", "minni"], "unknown task 'minni'. Did you mean 'mini'?"),
        (["other.json"], "other.json: which task is this?"),
        (["generations_mini_m.json", "-k", "5"], "pass@5 needs 5 samples a problem; one has 1"),
        (["generations_mini_m.json", "-k", "x"], "whole numbers"),
        (["generations_mini_m.json", "--sandbox", "jail"], "unknown sandbox level 'jail'"),
        (["generations_mini_m.json", "--task", "humaneval", "--data-dir", "nowhere"], "nowhere: no such folder"),
        (
            ["generations_mini_m.json", "--task", "humaneval", "--data-dir", "."],
            "no humaneval/HumanEval.jsonl[.gz] under .",
        ),
        (["generations_mini_m.json", "--limit", "3"], "50 problems, but the benchmark has 3"),
        (["deep.json", "--task", "mini"], "deep.json: not valid JSON: nested too deeply"),
        (["generations_mini_no.json.gz"], "generations_mini_no.json.gz: cannot be read: Not a gzipped file"),
        (["generations_mini_no.jsonl.gz"], "generations_mini_no.jsonl.gz: cannot be read: Not a gzipped file"),
        (
            ["generations_mini_m.json", "generations_mini_m.jsonl"],
            "generations_mini_m.jsonl: has the task and model of generations_mini_m.json",
        ),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    path = write_answers(tmp_path, "mini_m", ["" for _ in rows(MINI)])
    path.with_name("other.json").write_text("[]")
    path.with_name("deep.json").write_text("[" * 200_000)
    for name in ("generations_mini_no.json.gz", "generations_mini_no.jsonl.gz"):
        path.with_name(name).write_bytes(b"no gzip")
    lines = [json.dumps({"task_id": row["task_id"], "completion": ""}) for row in rows(MINI)]
    path.with_name("generations_mini_m.jsonl").write_text("\n".join(lines))
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split()) and "Traceback" not in said
