"""What the tests for a GPU and their CPU twins share: steps of packed samples, a model in any form, and the plain way to train it.

The plain way is transformers' own forward pass over each sample alone, in float32 on the CPU, with the objective written out
and torch's own AdamW: nothing of this project but the arithmetic of the coefficients is in it.
"""

import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.schema import AdapterConfig, BackendConfig, TrainConfig
from mftcoder.data.batches.loader import PackedBatch, StepCounts, StepData
from mftcoder.data.batches.packing import assemble, pack_best_fit
from mftcoder.data.rendering.tokenization import TokenizedSample
from mftcoder.kernels import attention
from mftcoder.models.gpu_memory.recompute import Recomputation, decoder_layers, recompute_layers
from mftcoder.models.layers.adapters import attach, trainable_parameters
from mftcoder.models.loading.load import load_folder
from mftcoder.training.backends.base import LocalBackend
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.losses.objective import Objective, token_coefficients
from mftcoder.training.step import train_step

VOCABULARY, ROW, ROWS = 509, 256, 4
KEPT = Recomputation()
WEIGHTS = TaskWeights(np.asarray([1.0, 3.0]))
TRAIN = TrainConfig(learning_rate=2e-3)
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.04}
"""The largest relative distance of two gradients that are equal but for rounding; 8 bits of mantissa over two layers."""


def samples(seed: int) -> list[TokenizedSample]:
    """About four rows of samples of two tasks, the first 54% of each a prompt; few words are common, so that there is something to learn."""
    random = np.random.default_rng(seed)
    lengths = [200, 130, *random.integers(5, 120, 11)]
    made = []
    for number, length in enumerate(lengths):
        ids = np.minimum(random.zipf(1.3, length + 1), VOCABULARY - 1).astype(np.int32)
        targets = ids[1:].copy()
        targets[: int(0.54 * length)] = -100
        made.append(TokenizedSample(number % 2, ids[:-1], targets, f"sample {number}"))
    return made


def step_data(of: Sequence[TokenizedSample], micro_batches: int = 1) -> StepData:
    """The samples packed into rows of 256, as one step."""
    plan = pack_best_fit(np.asarray([len(sample.input_ids) for sample in of]), ROW)
    rows = [assemble([of[index] for index in plan.row(row)], ROW) for row in range(len(plan))]
    columns = ("input_ids", "targets", "position_ids", "task_ids")
    batches = []
    for part in np.array_split(np.arange(len(rows)), micro_batches):
        stacked = {c: torch.from_numpy(np.stack([getattr(rows[r], c) for r in part]).astype(np.int64)) for c in columns}
        batches.append(PackedBatch(**stacked, samples=torch.zeros(0, 2, dtype=torch.int64)))
    trained = [(sample.task, int((sample.targets != -100).sum())) for sample in of]
    tokens = np.bincount([task for task, _ in trained], [count for _, count in trained], 2).astype(np.int64)
    tasks, positions = [task for task, _ in trained], sum(len(sample.input_ids) for sample in of)
    return StepData(tuple(batches), StepCounts(tokens, np.bincount(tasks, minlength=2), positions))


def best_attention(device: torch.device, dtype: torch.dtype) -> str:
    """What `auto` ends with for this model."""
    fits = attention.varlen_problem(dtype, 16, 16, 0.0, device) is None
    return "varlen" if device.type == "cuda" and fits else "segments"


def language_model(
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    adapter: str = "full",
    implementation: str | None = None,
    quantization: str | None = None,
    kept: Sequence[str] = (),
    how: Recomputation = KEPT,
) -> LanguageModel:
    """The model as `mft train` makes it; the adapter's new weights are the same on every device, and none of them zero."""
    attention.register()
    implementation = implementation or best_attention(device, dtype)
    base = load_folder(
        folder, dtype=dtype, device=device, attn_implementation=implementation, quantization=quantization, kept=kept
    )
    module = attach(base, AdapterConfig(type=adapter, lora_rank=8, lora_alpha=16))  # type: ignore[arg-type]
    if adapter == "lora":
        draw_adapter(module)
    recompute_layers(decoder_layers(base), how)
    return LanguageModel(module.train(), attn_implementation=implementation, num_tasks=2)


def draw_adapter(module: Any) -> None:
    random = torch.Generator().manual_seed(1)
    for _, weight in trainable_parameters(module):
        drawn = 0.05 * torch.randn(weight.shape, generator=random)
        weight.data.copy_(drawn.to(torch.bfloat16))  # the same number in every format


def gradient(model: LanguageModel, data: StepData) -> Tensor:
    """What trains' gradients of the step, added up over micro-batches in float32, as one vector on the CPU."""
    weights = [weight for _, weight in trainable_parameters(model.module)]
    total = [torch.zeros(weight.shape, device=weight.device) for weight in weights]
    for batch in data.micro_batches:
        coefficients = token_coefficients(batch, data.counts, WEIGHTS, Objective())
        model.losses(batch, coefficients).objective.backward()
        for weight, so_far in zip(weights, total, strict=True):
            assert weight.grad is not None
            so_far += weight.grad
            weight.grad = None
    return torch.cat([one.flatten().cpu() for one in total])


def train(model: LanguageModel, steps: Sequence[StepData], config: TrainConfig = TRAIN) -> list[float]:
    """The objective of each step, by the project's own step and optimizer."""
    backend = LocalBackend(BackendConfig(device=model.device.type))  # type: ignore[arg-type]
    optimizer = backend.optimizer(trainable_parameters(model.module), config)
    rate = config.learning_rate
    results = [train_step(model, data, WEIGHTS, Objective(), optimizer, rate, backend) for data in steps]
    return [result.objective for result in results]


def plain_model(folder: Path, adapter: str) -> Any:
    """transformers' model in float32 on the CPU, with peft's adapter if there is one."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if adapter == "full":
        return model
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 for an attribute it has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        settings = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        module = get_peft_model(model, settings)
    draw_adapter(module)
    return module


def plain_objective(module: Any, data: StepData) -> Tensor:
    """The step's objective, sample by sample: sum over tasks of w_k / sum(w) times the mean of the task's token losses."""
    device = next(module.parameters()).device
    total = torch.zeros((), device=device)
    shares = torch.from_numpy(WEIGHTS.values / WEIGHTS.values.sum() / data.counts.tokens).float()
    for ids, targets, task in _segments(data):
        logits = module(input_ids=ids[None].to(device), use_cache=False).logits[0].float()
        total = total + shares[task] * F.cross_entropy(logits, targets.to(device), ignore_index=-100, reduction="sum")
    return total


def _segments(data: StepData) -> Iterator[tuple[Tensor, Tensor, int]]:
    for batch in data.micro_batches:
        for ids, targets, positions, tasks in zip(
            batch.input_ids, batch.targets, batch.position_ids, batch.task_ids, strict=True
        ):
            starts = [*(positions == 0).nonzero().flatten().tolist(), len(positions)]
            for start, end in pairwise(starts):
                if tasks[start] >= 0:
                    yield ids[start:end], targets[start:end], int(tasks[start])


def plain_gradient(module: Any, data: StepData) -> Tensor:
    """What trains' gradients of the step, as one vector."""
    plain_objective(module, data).backward()
    return torch.cat([weight.grad.flatten().cpu().float() for _, weight in trainable_parameters(module)])


def plain_training(module: Any, steps: Sequence[StepData]) -> list[float]:
    """The objective of each step, with torch's AdamW and its own clipping."""
    weights = [weight for _, weight in trainable_parameters(module)]
    betas = (TRAIN.adam_beta1, TRAIN.adam_beta2)
    optimizer = torch.optim.AdamW(weights, TRAIN.learning_rate, betas, TRAIN.adam_epsilon, weight_decay=0.0)
    objectives = []
    for data in steps:
        objective = plain_objective(module, data)
        objective.backward()
        torch.nn.utils.clip_grad_norm_(weights, TRAIN.max_grad_norm or 1e9)
        optimizer.step()
        optimizer.zero_grad()
        objectives.append(objective.item())
    return objectives


def gap(a: Tensor, b: Tensor) -> float:
    """Relative distance of two vectors."""
    return ((a - b).norm() / b.norm()).item()
