"""`python performance/long_context.py`: what sharing a row among ranks saves in memory, on CPUs.

Goes in: a row's length and how many ranks share it. Comes out: a Markdown table with each rank's peak of resident memory above what
it held before one forward and backward of a small random Llama over one row, and the seconds that took. The processes share
this machine's cores, so the seconds show no speedup.
"""

import argparse
import multiprocessing
import os
import re
import socket
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mftcoder.config.schema import BackendConfig
from mftcoder.data.batches.loader import PackedBatch
from mftcoder.kernels import attention
from mftcoder.kernels.context_group import ContextGroup
from mftcoder.models.gpu_memory.recompute import Recomputation, decoder_layers, recompute_layers
from mftcoder.training.backends.process_group import ProcessGroup
from mftcoder.training.forward.language_model import LanguageModel

SHAPE = {
    "vocab_size": 1024, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1 << 20,
}  # fmt: skip


def one_row(length: int) -> PackedBatch:
    """A row of two samples, every token trained."""
    ids = torch.randint(0, SHAPE["vocab_size"], (1, length), generator=torch.Generator().manual_seed(0))
    positions = torch.cat([torch.arange(length // 4), torch.arange(length - length // 4)])[None]
    return PackedBatch(ids, ids.roll(-1), positions, torch.zeros_like(ids), torch.tensor([[0, 0], [0, 1]]))


def step(context: ContextGroup, length: int, *, recompute: bool) -> tuple[float, float, float]:
    """MiB above the memory held before, seconds, and this rank's share of the objective."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).train()
    model.set_attn_implementation("segments")
    if recompute:
        recompute_layers(decoder_layers(model), Recomputation(whole=1.0))
    language_model = LanguageModel(model, attn_implementation="segments", num_tasks=1, context=context)
    warm, batch = one_row(64), one_row(length)
    language_model.losses(warm, torch.ones(warm.targets.shape)).objective.backward()  # gradients take their room
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, started = memory("VmRSS"), time.perf_counter()
    losses = language_model.losses(batch, torch.full(batch.targets.shape, 1 / length))
    losses.objective.backward()
    return memory("VmHWM") - before, time.perf_counter() - started, float(losses.value)


def memory(name: str) -> float:
    """MiB of this process, VmRSS now or VmHWM at its peak."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "needs Linux's /proc"
    return int(found[1]) / 1024


def be_rank(rank: int, ranks: int, port: int, length: int, recompute: bool, answer: Connection) -> None:
    """One of the ranks that share the row."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    attention.register()
    group = ProcessGroup(BackendConfig(name="ddp", device="cpu", context_parallel_size=ranks))
    with group.joined():
        answer.send(step(group.context, length, recompute=recompute))


def measure(ranks: int, length: int, *, recompute: bool) -> list[tuple[float, float, float]]:
    """What each rank found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["__main__"])
    pipes = [server.Pipe(duplex=False) for _ in range(ranks)]
    processes = [
        server.Process(target=be_rank, args=(rank, ranks, port, length, recompute, pipes[rank][1]))
        for rank in range(ranks)
    ]
    for process, (_, sender) in zip(processes, pipes, strict=True):
        process.start()
        sender.close()  # so that a rank that breaks off is no wait without an end
    found = [receiver.recv() for receiver, _ in pipes]
    for process in processes:
        process.join()
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    print(f"one row of {options.length} tokens, forward and backward, float32\n")
    print("| ranks a row | gradient_checkpointing | peak of a rank, MiB | seconds | objective |\n|---|---|---|---|---|")
    for recompute in (False, True):
        for ranks in options.ranks:
            peaks, seconds, values = zip(*measure(ranks, options.length, recompute=recompute), strict=True)
            cells = (ranks, str(recompute).lower(), f"{max(peaks):.0f}", f"{max(seconds):.0f}", f"{sum(values):.6f}")
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
