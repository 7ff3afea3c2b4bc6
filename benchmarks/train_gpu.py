"""Training speed on one GPU: real tokens/s, peak memory and share of the matrix-product limit; full, LoRA and QLoRA in 4 and 8 bits.

    python benchmarks/train_gpu.py                      # all modes, 1.5B weights of Qwen2.5-Coder's shape, random
    python benchmarks/train_gpu.py --modes lora --steps 20 --json out.json
    python benchmarks/train_gpu.py --device cpu --small --steps 2 --warmup 1 --rows 1 --length 256    # do they run at all?

Needs a CUDA device (and bitsandbytes for QLoRA) and nothing else: no hub, no data. Rows hold samples of log-normal length (median 350 tokens), packed best-fit
into 4,096 positions, 8 rows a step. The limit is a large bf16 matrix product measured in the same process, 6 FLOP a weight and
token for full fine-tuning, 4 for LoRA and QLoRA (the base needs no weight gradients). The steps are `mft train`'s own: the same loading,
model wrapper, objective and optimiser. On a CPU the peak is the largest resident memory while the steps run.
"""

import argparse
import gc
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.schema import AdapterConfig, BackendConfig, TrainConfig
from mftcoder.data.loader import PackedBatch, StepCounts, StepData
from mftcoder.data.packing import assemble, pack_best_fit
from mftcoder.data.tokenization import TokenizedSample
from mftcoder.kernels import attention
from mftcoder.models.adapters import attach, trainable_parameters
from mftcoder.models.load import load_folder, recompute_activations
from mftcoder.models.quantize import quantizable_weights, quantization_problems
from mftcoder.training.backend import LocalBackend
from mftcoder.training.isolation import verify_isolation
from mftcoder.training.language_model import LanguageModel
from mftcoder.training.objective import Objective
from mftcoder.training.optimizer import MasterAdamW
from mftcoder.training.step import StepResult, train_step

NUM_TASKS = 5


@dataclass(frozen=True)
class Mode:
    """What is trained, and how much is recomputed."""

    adapter: str
    quantization: str | None
    gradient_checkpointing: bool
    torch_compile: bool

    @property
    def name(self) -> str:
        """As it stands in the table."""
        parts = [f"qlora {self.quantization}" if self.quantization else self.adapter]
        parts += ["checkpointing"] if self.gradient_checkpointing else []
        parts += ["compiled"] if self.torch_compile else []
        return ", ".join(parts)


MODES = [Mode(a, None, c, t) for a in ("full", "lora") for c, t in ((False, True), (False, False), (True, True))]
MODES += [Mode("lora", bits, c, False) for bits in ("4bit", "8bit") for c in (False, True)]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    mode: str
    tokens_per_second: float
    share_of_limit: float
    peak_gib: float
    first_loss: float
    last_loss: float


def matmul_limit(device: torch.device) -> float:
    """FLOP/s of a large square bf16 product (8192 on a GPU, 256 on a CPU), mean of 20 after a warm-up."""
    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    wait(device)
    started = time.perf_counter()
    for _ in range(20):
        a @ b
    wait(device)
    return 20 * 2 * size**3 / (time.perf_counter() - started)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """GiB at the end of the block in the list it gives: allocated on the GPU, or the process's resident memory."""
    found = [0.0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found[0] = torch.cuda.max_memory_allocated(device) / 2**30
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            found[0] = max(found[0], psutil.Process().memory_info().rss / 2**30)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def model_config(args: argparse.Namespace) -> Qwen2Config:
    """Qwen2.5-Coder-1.5B's shape (its published config.json), or a small one for a dry run."""
    small = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 4096}
    large = {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "vocab_size": 151936}
    shape = small if args.small else large
    return Qwen2Config(
        **shape, num_attention_heads=12 if not args.small else 4, num_key_value_heads=2, max_position_embeddings=32768,
        rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True,
    )  # fmt: skip


def make_steps(args: argparse.Namespace, vocabulary: int) -> list[StepData]:
    """Packed rows of random tokens, as the loader would give them."""
    random = np.random.default_rng(0)
    count = int(args.steps_total * args.rows * args.length / 400 * 1.3)
    lengths = np.clip(random.lognormal(np.log(350), 0.7, count), 16, args.length).astype(np.int64)
    plan = pack_best_fit(lengths, args.length)
    rows = random.permutation(len(plan))[: args.steps_total * args.rows]
    return [
        _step(plan, lengths, rows[i : i + args.rows], vocabulary, args, random) for i in range(0, len(rows), args.rows)
    ]


def _step(plan, lengths, rows, vocabulary, args, random) -> StepData:  # type: ignore[no-untyped-def]
    packed = []
    for row in rows:
        samples = []
        for member in plan.row(row):
            ids = random.integers(3, vocabulary, lengths[member] + 1).astype(np.int32)
            samples.append(TokenizedSample(int(member) % NUM_TASKS, ids[:-1], ids[1:], "random"))
        packed.append(assemble(samples, args.length))
    fields = {
        name: torch.from_numpy(np.stack([getattr(row, name) for row in packed]).astype(np.int64))
        for name in ("input_ids", "targets", "position_ids", "task_ids")
    }
    tasks = fields["task_ids"].flatten().numpy()
    tokens = np.bincount(tasks[tasks >= 0], minlength=NUM_TASKS).astype(np.int64)
    batch = PackedBatch(**fields, samples=torch.zeros(0, 2, dtype=torch.int64))
    return StepData(micro_batches=(batch,), counts=StepCounts(tokens=tokens, samples=tokens.clip(max=1)))


def random_model(args: argparse.Namespace, folder: Path) -> int:
    """A folder with random bf16 weights, as every mode loads it; returns how many of them stand in products."""
    torch.manual_seed(0)
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(model_config(args), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return quantizable_weights(model) + model.get_output_embeddings().weight.numel()


def measure(
    mode: Mode, args: argparse.Namespace, folder: Path, products: int, steps: list[StepData], limit: float
) -> Row:
    """Train `args.steps` steps after a warm-up of the rest."""
    device = torch.device(args.device)
    with peak_memory(device) as peak:
        results, seconds = train(mode, folder, device, steps, timed=args.steps)
    speed = sum(result.real_tokens for result in results[-args.steps :]) / seconds
    flop_per_token = (6 if mode.adapter == "full" else 4) * products
    first, last = results[0].objective, results[-1].objective
    return Row(mode.name, speed, speed * flop_per_token / limit, peak[0], first, last)


def train(
    mode: Mode, folder: Path, device: torch.device, steps: list[StepData], *, timed: int
) -> tuple[list[StepResult], float]:
    """What all steps did, and the seconds that the last `timed` of them took."""
    torch.manual_seed(0)
    implementation = attention.candidates(device)[0]
    model = load_folder(
        folder, dtype=torch.bfloat16, device=device, attn_implementation=implementation, quantization=mode.quantization
    )
    module = attach(model, AdapterConfig(type=mode.adapter, lora_rank=32, lora_alpha=64))  # type: ignore[arg-type]
    if mode.gradient_checkpointing:
        recompute_activations(model)
    wrapped = LanguageModel(module.train(), attn_implementation=implementation, num_tasks=NUM_TASKS)
    verify_isolation(wrapped, (torch.arange(3, 303), torch.arange(5, 405)))
    if mode.torch_compile:
        wrapped.compile_layers()
    config = TrainConfig(learning_rate=1e-5)
    optimizer = MasterAdamW(trainable_parameters(module), config)
    backend = LocalBackend(BackendConfig(device=device.type))  # type: ignore[arg-type]
    weights = TaskWeights(np.ones(NUM_TASKS))
    results = []
    started = time.perf_counter()
    for number, data in enumerate(steps):
        if number == len(steps) - timed:
            wait(device)
            started = time.perf_counter()
        results.append(train_step(wrapped, data, weights, Objective(), optimizer, config.learning_rate, backend))
    wait(device)
    return results, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", default="", help="only modes whose name holds this, e.g. lora or 'full, compiled'")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each mode")
    parser.add_argument("--warmup", type=int, default=5, help="steps before them")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--small", action="store_true", help="a small model: does it run at all?")
    parser.add_argument(
        "--device",
        default="cuda",
        choices=["cuda", "cpu"],
        help="cpu only to see that the modes run, compiled ones left out",
    )
    parser.add_argument("--json", type=Path, help="write the table there as well")
    args = parser.parse_args()
    args.steps_total = args.steps + args.warmup
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device. --device cpu --small shows whether all modes run")
    attention.register()
    limit = matmul_limit(torch.device(args.device))
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}; bf16 product: {limit / 1e12:.3g} TFLOP/s")
    print(f"{'mode':32} {'real tokens/s':>14} {'of the limit':>13} {'peak GiB':>9} {'loss first':>11} {'last':>7}")
    steps, rows = make_steps(args, model_config(args).vocab_size), []
    with tempfile.TemporaryDirectory() as temporary:
        products = random_model(args, Path(temporary))
        for mode in MODES:
            if args.modes not in mode.name or (args.device == "cpu" and mode.torch_compile):
                continue
            problems = list(quantization_problems(mode.quantization, None, name="")) if mode.quantization else []
            if problems:
                print(f"{mode.name:32} left out: {problems[0]}")
                continue
            rows.append(row := measure(mode, args, Path(temporary), products, steps, limit))
            gc.collect()
            torch.cuda.empty_cache()
            print(f"{row.mode:32} {row.tokens_per_second:14,.0f} {row.share_of_limit:13.0%} {row.peak_gib:9.1f} "
                  f"{row.first_loss:11.3f} {row.last_loss:7.3f}", flush=True)  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps({"limit": limit, "rows": [asdict(row) for row in rows]}, indent=2))


if __name__ == "__main__":
    main()
