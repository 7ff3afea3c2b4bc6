"""`make gpu`: whatever fails inside, it ends in time and its report is whole. Here as a dry run on the CPU."""

import argparse
import dataclasses
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
import torch

from mftcoder.app.training.train import train
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError, TrainingError

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
    assert ended.code is None and time.monotonic() - started < 300
    child = int(ended.output)
    deadline = time.monotonic() + 300
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


ROWS_THAT_FAIL = """
import json, os, sys, time
from pathlib import Path
what, spec = sys.argv[1], json.loads(sys.argv[2])
name = spec["row"].get("name")
if name == "crash":
    os.abort()
if name == "hang":
    print("still loading", flush=True)
    time.sleep(600)
found = {
    "status": "ok", "device": "CPU", "memory_gib": 1, "versions": {}, "flop_per_second": 1e9, "trained_share": 0.5, "micro_batches": 1,
    "rows": 2, "tokens_per_second": 5.0, "peak_gib": 1.0, "losses": [2.0, 1.0], "wait_ms": None,
    "rows_so_far": len(json.loads((Path(spec["folder"]) / "gpu.json").read_text())["rows"]),
}
if name == "full":
    found = {"status": "out of memory", "reason": "CUDA out of memory"}
Path(spec["result"]).write_text(json.dumps(found))
"""


def test_a_row_that_crashes_hangs_or_runs_out_of_memory_costs_its_row_and_no_other(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "row.py"
    script.write_text(ROWS_THAT_FAIL)
    names = ("first", "crash", "full", "hang", "last")
    monkeypatch.setattr(gpu, "ROWS", tuple(gpu.Row(name, config=gpu.LORA) for name in names))
    monkeypatch.setattr(gpu, "ROW_SCRIPT", script)
    monkeypatch.setattr(gpu, "ROW_SECONDS", 6.0)
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 1.0)
    settings = {"minutes": 9, "go_on": False, "json": tmp_path / "gpu.json", "only": "", "skip_tests": True}
    args = argparse.Namespace(**settings, device="cpu", tiny=True, profile=False, steps=2)
    benchmark = gpu.Benchmark(args, tmp_path)
    benchmark.run()
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["finished"] and benchmark.exit_code == 0
    found = {row["name"]: row for row in report["rows"]}
    statuses = ["ok", "crashed", "out of memory", "no time", "ok"]
    assert [found[name]["status"] for name in names] == statuses and len(report["rows"]) == len(names)
    assert "signal 6" in found["crash"]["reason"] and "the last line: still loading" in found["hang"]["reason"]
    assert found["last"]["rows_so_far"] == 4  # the report is written anew after each row
    said = capsys.readouterr().out
    assert "out of memory: CUDA out of memory" in said and "crashed: signal 6" in said


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


@pytest.fixture(scope="module")
def gpu_row() -> ModuleType:
    return loaded("gpu_row")


@pytest.fixture(scope="module")
def lora(gpu: ModuleType, gpu_row: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a row of LoRA is told, on a prepared folder with a tiny model."""
    folder = tmp_path_factory.mktemp("rows")
    row = {"name": "lora", "runs": "steps", "trained": "46%", "config": gpu.LORA}
    told = {"row": row, "folder": str(folder), "device": "cpu", "tiny": True, "result": str(folder / "result.json")}
    spec = gpu_row.Spec(**told, profile=True, machine={}, seconds=60, steps=2)
    return dataclasses.replace(spec, machine=gpu_row.prepare(spec))


def test_bare_steps_are_the_steps_that_mft_train_takes(gpu_row: ModuleType, lora: Any) -> None:
    found = gpu_row.run_steps(lora)
    assert (found["status"], found["plan"], found["attention"]) == ("ok", "recompute nothing", "segments")
    assert found["tokens_per_second"] > 0 and found["flop_per_second"] > 0 and found["peak_gib"] > 0
    assert len(found["kernels"]) == 10 and found["waits_for_the_device"] is None
    config = RunConfig.model_validate(gpu_row.run_config(lora))
    train(config)
    lines = (config.output_path / "metrics.jsonl").read_text().splitlines()
    expected = [record["loss"] for record in map(json.loads, lines) if record["kind"] == "train"]
    assert found["losses"] == pytest.approx(expected[: gpu_row.WARMUP + lora.steps], rel=1e-6)


def test_bare_steps_that_run_out_of_memory_are_taken_by_the_next_plan(
    gpu_row: ModuleType, lora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(spec: Any, config: RunConfig, plan: RunConfig, *_: Any) -> dict[str, Any]:
        if plan.train.gradient_checkpointing in (False, "selective"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"status": "ok"}

    monkeypatch.setattr(gpu_row, "time_steps", steps)
    assert gpu_row.run_steps(lora) == {
        "status": "ok",
        "plan": "recompute norms and SwiGLU, and 25% of the layers wholly",
    }


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out of memory", "CUDA out of memory"),
        (TrainingError("the device ran out of memory: x"), "out of memory", "the device ran out of memory"),
        (ConfigError("backend.device: no CUDA device"), "refused", "ConfigError: backend.device"),
        (ImportError("No module named 'trl'"), "refused", "No module named 'trl'"),
        (ZeroDivisionError("division by zero\nmore"), "failed", "ZeroDivisionError: division by zero"),
    ],
)
def test_what_a_row_ran_into_is_a_status_and_a_line(
    gpu_row: ModuleType, error: BaseException, status: str, reason: str
) -> None:
    found = gpu_row.failure(error)
    assert found["status"] == status and reason in found["reason"] and "\n" not in found["reason"]


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
    steps, command, deterministic = report["rows"]
    assert [row["status"] for row in report["rows"]] == ["ok"] * 3, report
    assert len(steps["losses"]) == len(command["losses"]) == 7
    assert deterministic["losses"] == command["losses"]
    assert all(row["tokens_per_second"] > 0 and row["share_of_limit"] > 0 for row in report["rows"])
    assert len(steps["kernels"]) == 10 and steps["kernels"][0]["ms"] >= steps["kernels"][9]["ms"] > 0
    assert 0.35 < report["machine"]["trained_share"] < 0.52
    assert report["finished"] and report["tests"]["status"] == "ok"
