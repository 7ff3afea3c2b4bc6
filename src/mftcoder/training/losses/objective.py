"""The objective of one optimizer step as a coefficient per token: counting comes before dividing.

With mask m, token loss l, task k of each token and task weights w, over ALL micro-batches and ALL ranks of the step:

    token        (sum_k w_k sum_{k} m*l) / (sum_k w_k sum_{k} m)              (published name: case1)
    sample       the same with a sample's mean loss for l and 1 for m         (case2)
    task_token   sum_k w_k * (sum_{k} m*l / sum_{k} m) / sum_k w_k            (case3, the default)
    task_sample  the same with sample means inside each task                  (case4)
    corpus       sum_k w_k * (sum_{k} m*l) / n_k / sum_k w_k,    n_k the mean trained tokens of task k in a step

With equal weights, token and sample are exactly the published objectives: the mean over all tokens, or over all samples. With other
weights, a token (or sample) of one task counts more than one of another, so weights and balancers have an effect in every mode.

The counts of the whole step are known before its first forward pass, so each token's coefficient is a constant and the objective is
the plain sum of coefficient times loss. It does not depend on padding, or on the split into micro-batches, ranks, rows or packs. This
file is arithmetic on the host, without model or device. In a preference task a pair of answers stands for a token and for a sample;
preference.py makes the coefficients of its tokens from that of the pair.

If a task is absent from a step: with `absent_task: renormalize` both sums over k cover only the tasks that are present, so these get
the whole weight; with `keep` the denominator covers all tasks, so the absent task's weight is unused. In both cases a rare task counts
less than its weight. With `corpus` it does not: a token has the same coefficient in every step (w_k divided by the task's tokens in
the corpus, times the steps of an epoch), so over an epoch each task has exactly its weight, and no rank needs the others' counts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.loss import LossConfig
from mftcoder.data.batches.loader import PackedBatch, StepCounts

NORMALIZATIONS = ("token", "sample", "task_token", "task_sample")


@dataclass(frozen=True)
class Objective:
    """The settings of the objective."""

    normalization: str = "task_token"
    absent_task: str = "renormalize"
    expected_units: NDArray[np.float64] | None = (
        None  # [K] mean trained tokens (or pairs) per step of each task; for corpus
    )
    focal: str = "none"
    focal_gamma: float = 2.0
    focal_detach: bool = True
    router_aux_loss_coef: float | None = None  # None: the model's own

    @classmethod
    def of(cls, config: LossConfig, expected_units: NDArray[np.float64]) -> "Objective":
        return cls(**config.model_dump(), expected_units=expected_units)


def token_coefficients(batch: PackedBatch, counts: StepCounts, weights: TaskWeights, objective: Objective) -> Tensor:
    """Coefficient of each token's loss, float32 [B, L]; 0 for tokens that are not trained. All tokens of a pair have that of the pair."""
    trained, tasks = (batch.targets != -100).numpy(), batch.task_ids.numpy()
    scale = task_scales(counts, weights, objective)
    coefficients = np.where(trained, scale[tasks], 0.0)
    if objective.normalization in ("sample", "task_sample"):
        shares = np.maximum(trained_tokens_of_sample(batch.position_ids.numpy(), trained), 1)
        coefficients /= shares if counts.by_sample is None else np.where(counts.by_sample[tasks], 1, shares)
    return torch.from_numpy(coefficients.astype(np.float32))


def task_scales(counts: StepCounts, weights: TaskWeights, objective: Objective) -> NDArray[np.float64]:
    """The factor [K] of each task's token losses (token, task_token, corpus) or sample means (sample, task_sample)."""
    normalization = objective.normalization
    if normalization == "corpus":
        assert objective.expected_units is not None, "corpus needs the expected tokens"
        return weights.values / np.maximum(objective.expected_units, np.finfo(np.float64).tiny)
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"unknown normalization {normalization}")
    units = counts.samples if normalization in ("sample", "task_sample") else counts.units
    if normalization in ("token", "sample"):
        return weights.values / max(float(weights.values @ units), np.finfo(np.float64).tiny)
    present = np.where(units > 0, weights.values, 0.0)
    shared = weights.values.sum() if objective.absent_task == "keep" else present.sum()
    return present / max(shared, np.finfo(np.float64).tiny) / np.maximum(units, 1)


def trained_tokens_of_sample(position_ids: NDArray[np.int64], trained: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The number of trained tokens of each position's sample [B, L]."""
    sample = (position_ids == 0).ravel().cumsum() - 1
    per_sample = np.bincount(sample, weights=trained.ravel()).astype(np.int64)
    return per_sample[sample].reshape(position_ids.shape)
