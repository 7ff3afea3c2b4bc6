"""The launchers people use: mft --nproc, torchrun, accelerate; a killed worker and a preempted run go on by themselves."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.forked import PATIENCE
from tests.forked import run as mft
from tests.integration import test_backends
from tests.integration.test_backends import Ranks, needs_deepspeed, output
from tests.integration.test_train_cli import (
    metrics,
    metrics_if_whole,
    same_bits,
    weights,
    write_config,
    write_tasks,
)
from tests.ranks import free_port

ranks = test_backends.ranks
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("launched"), rows=40)


def config_in(folder: Path, model: Path, data: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    usual = {"adapter__lora_dropout": 0.0, "train__eval_strategy": "no", "train__max_steps": 12}
    return write_config(folder, model, data, **{**usual, **fields})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_llama_dir: Path, data: Path, ranks: Ranks) -> Path:
    """A run of two ranks that no launcher started and nothing ended."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert ranks(2, folder, "train", config_in(folder, tiny_llama_dir, data)) == [0, 0], output(folder)
    return folder / "run"


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([*TORCHRUN, "--nproc-per-node=2", "-m", "mftcoder", "train"], id="torchrun"),
        pytest.param([sys.executable, "-m", "mftcoder", "train", "--nproc", "2"], id="mft"),
    ],
)
@pytest.mark.slow(reason="three processes import torch; the test of SIGTERM starts two ranks by the same launcher")
def test_a_launchers_processes_make_the_run_of_two_ranks(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, undisturbed: Path, launcher: list[str]
) -> None:
    command = [*launcher, str(config_in(tmp_path, tiny_llama_dir, data))]
    launched = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert launched.returncode == 0, launched.stderr
    assert same_bits(weights(tmp_path / "run"), weights(undisturbed))


def count_checks(file: Path) -> None:
    """Note the rank in the file each time a model is resolved: each resolve_model compares the tokenizer with the model once."""
    from mftcoder.models.loading import resolve

    check = resolve.tokenizer_problems

    def counted(*arguments: Any, **keywords: Any) -> Any:
        with file.open("a") as opened:
            opened.write(os.environ.get("RANK", "0"))
        return check(*arguments, **keywords)

    resolve.tokenizer_problems = counted


@pytest.mark.parametrize("world", [1, 2])
def test_a_run_resolves_its_model_once_and_on_rank_0(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks, world: int
) -> None:
    config, checks = config_in(tmp_path, tiny_llama_dir, data, train__max_steps=1), tmp_path / "checks"
    codes = ranks(world, tmp_path, "train", config, first=partial(count_checks, checks))
    assert codes == [0] * world, output(tmp_path)
    assert checks.read_text() == "0"


def test_a_mistake_has_exit_code_2_before_a_process_is_started(
    tmp_path: Path, tiny_llama_dir: Path, data: Path
) -> None:
    config = config_in(tmp_path, tiny_llama_dir, data)
    refused = mft("train", config, "--nproc", 2, "backend.name=atorch")
    assert refused.returncode == 2 and "Its successor DLRover" in refused.stderr
    assert mft("train", config, "--nproc", 2, "--nnodes", 2).returncode == 2


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mftcoder", "train", str(config), "--nproc", "2", *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if (run / "metrics.jsonl").exists() and f'"step": {step},' in "\n".join(metrics_if_whole(run)):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} did not come")


def worker(launcher: int, rank: int) -> psutil.Process:
    """The training process of a rank."""
    children = psutil.Process(launcher).children()
    return next(child for child in children if child.environ().get("RANK") == str(rank))


DYING = """
import os
import signal
from mftcoder.cli.group import main
from mftcoder.training import loop

step, begun = loop.train_step, 0

def step_or_die(*arguments, **keywords):
    global begun
    begun += 1
    if (begun, os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (6, os.environ["VICTIM"], "0"):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments, **keywords)

loop.train_step = step_or_die
main()
"""
"""`mft` one rank of which kills itself at its sixth step, unless it was started again."""


def let_workers_run(script: Path) -> None:
    """Let the processes that this one launches run the script instead of `-m mftcoder`."""
    from torch.distributed import run as torchrun

    parse = torchrun.parse_args

    def parse_with_script(words: list[str]) -> Any:
        place = words.index("-m")
        return parse([*words[:place], str(script), *words[place + 2 :]])

    torchrun.parse_args = parse_with_script


@pytest.mark.slow(reason="four processes import torch; the test of sharded checkpoints kills a worker in `make test`")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_costs_no_step(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, undisturbed: Path, rank: int
) -> None:
    """kill -9 in the middle: torchrun starts the ranks again, they go on, and the end is that of an undisturbed run."""
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    command = ("train", config_in(tmp_path, tiny_llama_dir, data), "--nproc", 2, "--max-restarts", 2)
    done = mft(*command, environment={"VICTIM": str(rank)}, first=partial(let_workers_run, script))
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stdout
    assert same_bits(weights(tmp_path / "run"), weights(undisturbed))
    assert [record["step"] for record in metrics(tmp_path / "run")] == list(range(1, 13))


def test_sigterm_saves_and_asks_to_be_started_again(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    fields = {"train__max_steps": 100_000, "train__save_steps": 100_000, "adapter__type": "full"}
    process = start(config_in(tmp_path, tiny_llama_dir, data, **fields))
    wait_for_step(tmp_path / "run", 3)
    process.terminate()
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, printed
    latest = (tmp_path / "run" / "checkpoints" / "latest").read_text().strip()
    progress = json.loads((tmp_path / "run" / "checkpoints" / latest / "progress.json").read_text())
    assert 3 <= progress["step"] < 100_000
    assert printed.count("Go on with: mft train") == 1 and "Traceback" not in printed


@pytest.mark.slow(reason="a rank hangs for 20 seconds; the unit test of process groups has the same in ten")
def test_a_rank_that_hangs_is_named(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    config = config_in(tmp_path, tiny_llama_dir, data, train__max_steps=100_000, train__save_steps=100_000)
    process = start(config, "backend.timeout_seconds=20")
    wait_for_step(tmp_path / "run", 3)
    worker(process.pid, 1).suspend()
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "rank 1 has not come to it, and was last seen in" in printed


def published_json(folder: Path, model: Path, data: Path) -> Path:
    """The published example, for two steps on our tasks."""
    from tests.integration.test_published_config import EXAMPLE

    text = json.dumps(
        {**EXAMPLE, "max_train_steps": 2, "data_paths": [str(data / name) for name in ("squares", "next")]}
    )
    path = folder / "train.json"
    path.write_text(text.replace("OUT", str(folder / "run")).replace("MODEL", str(model)))
    return path


def accelerate_launch(options: list[str], config: Path, engine: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch OPTIONS -m mftcoder train --train_config CONFIG --distributed_type ENGINE`."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_machines=1", "--dynamo_backend=no", *options]
    command = [*launcher, "-m", "mftcoder", "train", "--train_config", str(config), "--distributed_type", engine]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow(reason="accelerate and two ranks import torch; the same ranks run under mft train --nproc")
def test_the_published_launch_line_works(tmp_path: Path, tiny_llama_dir: Path, data: Path) -> None:
    config = published_json(tmp_path, tiny_llama_dir, data)
    done = accelerate_launch(["--cpu", "--mixed_precision=no", "--num_processes=1"], config, "FSDP")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2


@needs_deepspeed
@pytest.mark.slow(reason="two processes import torch and DeepSpeed, which test_backends.py trains with in forked ones")
def test_the_published_launch_line_of_deepspeed_runs_two_processes(
    tmp_path: Path, tiny_llama_dir: Path, data: Path
) -> None:
    config = published_json(tmp_path, tiny_llama_dir, data)
    stage = ["--use_deepspeed", "--deepspeed_multinode_launcher=standard", "--zero_stage=2", "--zero3_init_flag=false"]
    offload = ["--offload_optimizer_device=cpu", "--offload_param_device=none", "--gradient_clipping=1.0"]
    processes = [
        "--num_processes=2",
        "--same_network",
        "--main_process_ip=127.0.0.1",
        f"--main_process_port={free_port()}",
    ]
    done = accelerate_launch([*stage, *offload, *processes, "--mixed_precision=bf16"], config, "DeepSpeed")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
    resolved = (tmp_path / "run" / "config.yaml").read_text()
    assert "name: deepspeed_zero2" in resolved and "offload: optimizer" in resolved
