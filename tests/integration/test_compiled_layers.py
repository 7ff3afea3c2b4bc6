"""A whole run with compiled layers, with the real loader: it compiles each kind of layer once, and computes what a plain run does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.test_train_cli import metrics, write_config, write_tasks

STEPS = 60
TRAIN_AND_COUNT = """
import json, logging, sys
import torch
from pathlib import Path
from torch._dynamo.utils import counters
from mftcoder.app.training.train import train
from mftcoder.config.load import load_config
torch._dynamo.config.recompile_limit = int(sys.argv[2])
logging.basicConfig(format="%(message)s")
train(load_config(Path(sys.argv[1])))
print(json.dumps({"graphs": counters["stats"]["unique_graphs"], "breaks": dict(counters["graph_break"])}))
"""


def run(
    folder: Path, model: Path, data: Path, *, adapter: str, compiled: bool, limit: str = "8", num_steps: int = STEPS
) -> tuple[list[float], dict[str, int], str]:
    """Losses of the steps of rows of many lengths, with a validation each 10 and a last batch of fewer rows; graphs; stderr."""
    folder.mkdir()
    settings = {"adapter__lora_dropout": 0.0, "adapter__type": adapter, "train__torch_compile": compiled}
    lengths = {"data__packing": "none", "data__padding": "dynamic", "train__per_device_train_batch_size": 3}
    steps = {
        "train__learning_rate": 1e-3,
        "train__max_steps": num_steps,
        "train__eval_steps": 10,
        "train__save_steps": num_steps,
    }
    config = write_config(folder, model, data, **settings, **lengths, **steps)
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_AND_COUNT, str(config), limit],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [line["loss"] for line in metrics(folder / "run") if line["kind"] == "train"]
    return losses, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.slow(reason="real compiling, and 120 steps: about a minute")
@pytest.mark.parametrize(("adapter", "kinds"), [("full", 1), ("lora", 2)])
def test_a_run_compiles_one_graph_for_each_kind_of_layer_and_mode(
    tmp_path: Path, tiny_llama_dir: Path, adapter: str, kinds: int
) -> None:
    """With LoRA the first layer is of its own kind in training: its input needs no gradient."""
    data = write_tasks(tmp_path / "data", rows=61)
    losses, found, said = run(tmp_path / "compiled", tiny_llama_dir, data, adapter=adapter, compiled=True)
    validation = 1
    assert found == {"graphs": kinds + validation, "breaks": {}}, said
    assert "recompile_limit" not in said and "WON'T CONVERT" not in said
    plain, none, _ = run(tmp_path / "plain", tiny_llama_dir, data, adapter=adapter, compiled=False)
    assert none["graphs"] == 0
    assert losses == pytest.approx(plain, rel=1e-3)


@pytest.mark.slow(reason="real compiling: about half a minute")
def test_a_run_says_in_one_line_that_the_compiler_makes_no_more_graphs(tmp_path: Path, tiny_llama_dir: Path) -> None:
    """With one graph allowed, validation takes it, and training runs uncompiled."""
    data = write_tasks(tmp_path / "data", rows=13)
    settings = {"adapter": "full", "compiled": True, "num_steps": 2}
    losses, found, said = run(tmp_path / "limited", tiny_llama_dir, data, limit="1", **settings)
    assert found["graphs"] == 1
    (line,) = (line for line in said.splitlines() if "graphs" in line)
    assert line.startswith("train.torch_compile: the compiler has made its largest number of graphs for")
    assert "recompile_limit" not in said
    plain, _, _ = run(tmp_path / "plain", tiny_llama_dir, data, adapter="full", compiled=False, num_steps=2)
    assert losses == pytest.approx(plain, rel=1e-3)
