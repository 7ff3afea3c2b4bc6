"""Checkpoints that each rank writes its share of, behind the training: they go on anywhere, survive kill -9, and export."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from tests.forked import run as mft
from tests.integration import test_backends
from tests.integration.test_backends import Ranks, assert_same_run, config_for, output
from tests.integration.test_train_cli import metrics

data, ranks = test_backends.data, test_backends.ranks
SHARDED = ("train.save_format=sharded", "train.async_save=true")


def model_weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: weight for file in files for name, weight in load_file(file).items()}


@pytest.mark.slow(reason="four ranks, then two, then one; test_backends goes on with another number of ranks too")
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_shares_of_four_ranks_go_on_with_two_under_ddp_and_on_one_device(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks, adapter: str
) -> None:
    """Four ranks of fsdp2 to step 4, two to 6, two of ddp to 8, one device to 10; beside ten steps on one device."""
    fields = {"adapter__type": adapter, "train__eval_strategy": "no", "train__lr_scheduler_type": "constant"}
    whole = tmp_path / "whole"
    assert ranks(1, whole, "train", config_for(whole, tiny_llama_dir, data, 1, **fields)) == [0], output(whole)
    config = config_for(tmp_path, tiny_llama_dir, data, 4, **fields)
    for world, steps, backend in ((4, 4, "fsdp2"), (2, 6, "fsdp2"), (2, 8, "ddp"), (1, 10, "local")):
        going_on = ("--allow-changes", f"train.max_steps={steps}", f"backend.name={backend}")
        assert ranks(world, tmp_path, "train", config, *SHARDED, *going_on) == [0] * world, output(tmp_path)
    checkpoints = tmp_path / "run" / "checkpoints"
    shares = {path.name: len(list(path.glob("optimizer/shares/*.distcp"))) for path in checkpoints.glob("step-*")}
    assert shares == {"step-00000006": 2, "step-00000008": 0, "step-00000010": 0}
    assert_same_run(tmp_path / "run", whole / "run")


DIES_WHILE_WRITING = """
import os
import signal
import sys

def die_at_the_third_checkpoint(event, arguments):
    if event == "open" and "/.step-00000006.tmp/optimizer/shares/" in str(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

if (os.environ.get("RANK"), os.environ.get("TORCHELASTIC_RESTART_COUNT")) == ("1", "0"):
    sys.addaudithook(die_at_the_third_checkpoint)
"""
"""What each Python process runs as it starts: rank 1 kills itself when it begins to write its share, unless it was started again."""


def test_a_worker_killed_while_a_checkpoint_is_written_costs_no_step(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks
) -> None:
    """kill -9 with a half written checkpoint on disk: the run goes on by itself from the one before it, to the same bits.

    The one test in `make test` that kills a launched worker: four processes import torch, about 30 seconds.
    """
    fields = {"adapter__type": "full", "model__dtype": "bfloat16", "train__eval_strategy": "no", "train__save_steps": 2}
    folders = [tmp_path / name for name in ("whole", "killed")]
    whole, killed = (config_for(folder, tiny_llama_dir, data, 2, **fields, train__max_steps=8) for folder in folders)
    options = (*SHARDED, "backend.name=fsdp2")
    assert ranks(2, folders[0], "train", whole, *options) == [0, 0], output(folders[0])
    (tmp_path / "startup").mkdir()
    (tmp_path / "startup" / "sitecustomize.py").write_text(DIES_WHILE_WRITING)
    environment = {"PYTHONPATH": str(tmp_path / "startup")}
    done = mft("train", killed, "--nproc", 2, "--max-restarts", 2, *options, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stdout
    found, wanted = (model_weights(folder / "run" / "checkpoints" / "step-00000008" / "model") for folder in folders)
    assert found and all(found[name].equal(wanted[name]) for name in wanted)
    assert [record["step"] for record in metrics(folders[1] / "run")] == list(range(1, 9))


def test_a_sharded_checkpoint_is_exported_like_any_other(
    tmp_path: Path, tiny_llama_dir: Path, data: Path, ranks: Ranks
) -> None:
    """Of Mixtral, whose experts lie fused in memory, and one by one in files."""
    base = tmp_path / "base"
    shutil.copytree(tiny_llama_dir, base)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_local_experts": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(AutoTokenizer.from_pretrained(base))}
    MixtralForCausalLM(MixtralConfig(**sizes, **heads)).save_pretrained(base)
    fields = {"adapter__type": "full", "train__max_steps": 2, "train__eval_strategy": "no"}
    config = config_for(tmp_path, base, data, 2, **fields)
    assert ranks(2, tmp_path, "train", config, *SHARDED, "backend.name=fsdp2") == [0, 0], output(tmp_path)
    exported = mft("export", tmp_path / "run", tmp_path / "out")
    assert exported.returncode == 0, exported.stderr
    trained = model_weights(tmp_path / "run" / "checkpoints" / "step-00000002" / "model")
    out, before = model_weights(tmp_path / "out"), model_weights(base)
    assert out.keys() == before.keys() and trained.keys() != before.keys()
    experts = "model.layers.0.block_sparse_moe.experts"
    fused = torch.cat([out[f"{experts}.1.w1.weight"], out[f"{experts}.1.w3.weight"]])
    assert fused.equal(trained["model.layers.0.mlp.experts.gate_up_proj"][1])
