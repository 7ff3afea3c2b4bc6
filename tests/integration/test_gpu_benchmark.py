"""`make gpu`: whatever fails inside, it ends in time and its report is whole. Here as a dry run on the CPU."""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "performance" / "gpu.py"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", SCRIPT.with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return loaded("gpu")


def dry_run(tmp_path: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    report = tmp_path / "gpu.json"
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--json", str(report), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    return done, json.loads(report.read_text())


def test_a_process_that_hangs_ends_in_time_with_all_that_it_started(gpu: ModuleType) -> None:
    sleeper = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    started = time.monotonic()
    ended = gpu.Processes().run([sys.executable, "-c", sleeper], 3.0)
    assert ended.code is None and time.monotonic() - started < 30
    child = int(ended.output)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("program", "status", "reason"),
    [
        ("import os; os.abort()", "crashed", "signal 6"),
        ("raise SystemExit('no such thing')", "crashed", "exit code 1: no such thing"),
        ("import time; print('loading', flush=True); time.sleep(60)", "no time", "the last line: loading"),
    ],
)
def test_a_row_that_leaves_no_result_says_how_it_ended(
    gpu: ModuleType, tmp_path: Path, program: str, status: str, reason: str
) -> None:
    ended = gpu.Processes().run([sys.executable, "-c", program], 5.0)
    found = gpu.outcome(ended, tmp_path / "result.json", 5.0)
    assert found["status"] == status and reason in found["reason"]


def test_rows_without_time_are_left_out_by_name(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"minutes": 0.2, "go_on": False, "json": tmp_path / "gpu.json", "only": "", "skip_tests": True}
    benchmark = gpu.Benchmark(argparse.Namespace(**settings), tmp_path)
    benchmark.measure(None)
    written = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["row"] for row in written] == [row.key for row in gpu.ROWS]
    assert {row["status"] for row in written} == {"left out"}
    assert "no time left" in capsys.readouterr().out


def test_going_on_measures_what_had_no_time_and_keeps_the_rest(gpu: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    first, second = gpu.ROWS[0].key, gpu.ROWS[1].key
    path.write_text(json.dumps({"rows": [{"row": first, "status": "ok"}, {"row": second, "status": "left out"}]}))
    benchmark = gpu.Benchmark(argparse.Namespace(minutes=1, go_on=True, json=path), tmp_path)
    assert [row["row"] for row in benchmark.report["rows"]] == [first]


@pytest.mark.parametrize(
    "output",
    [
        "tests/gpu/a.py::one PASSED [ 1%]\ntests/gpu/a.py::two[cuda-0] FAILED [ 2%]\ntests/gpu/a.py::three ",
        "[gw0] [  1%] PASSED tests/gpu/a.py::one \n[gw3] [ 2%] FAILED tests/gpu/a.py::two[cuda-0] \ntests/gpu/a.py::three \n",
    ],
    ids=["one process", "workers"],
)
def test_failed_tests_are_named_also_when_the_rest_had_no_time(gpu: ModuleType, output: str) -> None:
    report = gpu.test_report(gpu.Ended(None, output, 3.0), 3.0)
    assert report["status"] == "no time" and report["failed"] == ["tests/gpu/a.py::two[cuda-0]"]
    assert "1 passed, 1 failed; killed after 3 s" in report["reason"]


@pytest.mark.slow(reason="loads torch and transformers in another process")
def test_without_a_gpu_it_says_so_in_one_line(gpu: ModuleType, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--tiny", "--json", str(tmp_path / "gpu.json")],
        capture_output=True, text=True, timeout=300, env={**gpu.children_environment(), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr == ""
    assert "nothing can be measured: torch sees no CUDA device. A dry run needs none" in done.stdout


@pytest.mark.slow(reason="three processes that each load torch and transformers")
def test_a_dry_run_measures_the_command_and_its_bare_steps(tmp_path: Path) -> None:
    done, report = dry_run(tmp_path, "--only", "lora, defaults [all]|lora, mft train", "--steps", "2", "--profile")
    assert done.returncode == 0, done.stdout + done.stderr
    steps, command = report["rows"]
    assert (steps["status"], command["status"]) == ("ok", "ok"), report
    assert len(steps["losses"]) == len(command["losses"]) == 7
    assert all(row["tokens_per_second"] > 0 and row["share_of_limit"] > 0 for row in report["rows"])
    assert len(steps["kernels"]) == 10 and steps["kernels"][0]["ms"] >= steps["kernels"][9]["ms"] > 0
    assert 0.35 < report["machine"]["trained_share"] < 0.52
    assert report["finished"] and report["tests"]["status"] == "ok"
