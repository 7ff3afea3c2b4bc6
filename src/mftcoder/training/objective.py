"""The objective of one optimiser step as a coefficient per token: counting comes before dividing.

With mask m, token loss l, task k of each token and task weights w, over ALL micro-batches and ALL ranks of the step:

    token        sum m*l / sum m                                              (published name: case1)
    sample       mean over samples of (sum m*l / sum m)                       (case2)
    task_token   sum_k w_k * (sum_{k} m*l / sum_{k} m) / sum_k w_k            (case3, the default)
    task_sample  the same with sample means inside each task                  (case4)

The counts of the whole step are known from the plan before its first forward, so each token's coefficient is a constant, the
objective is the plain sum of coefficient times loss, and neither the split into micro-batches, ranks, rows or packs nor padding
can change it. The sum over k runs over the tasks present in the step. Host arithmetic only; no model, no device.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mftcoder.balancing.base import TaskWeights
from mftcoder.data.loader import PackedBatch, StepCounts

NORMALIZATIONS = ("token", "sample", "task_token", "task_sample")


def token_coefficients(batch: PackedBatch, counts: StepCounts, weights: TaskWeights, normalization: str) -> Tensor:
    """Coefficient of each token's loss, float32 [B, L]; 0 where nothing is trained."""
    trained = (batch.targets != -100).numpy()
    scale = task_scales(counts, weights, normalization)
    coefficients = np.where(trained, scale[batch.task_ids.numpy()], 0.0)
    if normalization in ("sample", "task_sample"):
        coefficients /= np.maximum(trained_tokens_of_sample(batch.position_ids.numpy(), trained), 1)
    return torch.from_numpy(coefficients.astype(np.float32))


def task_scales(counts: StepCounts, weights: TaskWeights, normalization: str) -> NDArray[np.float64]:
    """What a token (token, task_token) or a sample's mean (sample, task_sample) of each task is multiplied by [K]."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"unknown normalization {normalization}")
    units = counts.samples if normalization in ("sample", "task_sample") else counts.tokens
    if normalization in ("token", "sample"):
        return np.full(len(units), 1.0 / max(units.sum(), 1))
    present = np.where(units > 0, weights.values, 0.0)
    return present / max(present.sum(), np.finfo(np.float64).tiny) / np.maximum(units, 1)


def trained_tokens_of_sample(position_ids: NDArray[np.int64], trained: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each position, how many trained tokens its sample has [B, L]."""
    sample = (position_ids == 0).ravel().cumsum() - 1
    per_sample = np.bincount(sample, weights=trained.ravel()).astype(np.int64)
    return per_sample[sample].reshape(position_ids.shape)
