"""DLRover starts the trainer, and starts it again after a worker was killed. Skips where dlrover[k8s] is not installed."""

import importlib.util
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked import PATIENCE
from tests.integration.test_launch import ENVIRONMENT, config_in, wait_for_step, worker
from tests.integration.test_train_cli import metrics, write_tasks
from tests.ranks import free_port

pytestmark = pytest.mark.skipif(importlib.util.find_spec("dlrover") is None, reason="no dlrover")


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """That of a node whose job has a master, as docs/scaling.md starts it."""
    port = free_port()
    options = ["--platform", "local", "--job_name", "mftcoder", "--port", str(port), "--node_num", "1"]
    command = [sys.executable, "-m", "dlrover.python.master.main", *options]
    with (tmp_path / "master.log").open("w") as log:
        master = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + PATIENCE
    while "Master grpc server started" not in (tmp_path / "master.log").read_text():
        assert time.monotonic() < deadline, (tmp_path / "master.log").read_text()
        time.sleep(0.1)
    node = {"DLROVER_MASTER_ADDR": f"127.0.0.1:{port}", "NODE_RANK": "0", "NODE_NUM": "1", "POD_NAME": "node-0"}
    yield {**ENVIRONMENT, **node}
    master.terminate()
    master.wait(30)


def test_a_killed_worker_costs_no_step_under_dlrover(
    tmp_path: Path, tiny_llama_dir: Path, environment: dict[str, str]
) -> None:
    config = config_in(tmp_path / "killed", tiny_llama_dir, write_tasks(tmp_path, rows=40), train__max_steps=30)
    launcher = Path(sys.executable).with_name("dlrover-run")
    options = ["--nnodes=1", "--nproc_per_node=2", "--max_restarts=2", "-m", "mftcoder", "train", str(config)]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen([launcher, *options], env=environment, stdout=output, stderr=subprocess.STDOUT)
    run = tmp_path / "killed" / "run"
    wait_for_step(run, 5)
    worker(process.pid, 1).send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE) == 0, (tmp_path / "output").read_text()
    assert "going on from" in (tmp_path / "output").read_text()
    assert [record["step"] for record in metrics(run)] == list(range(1, 31))
