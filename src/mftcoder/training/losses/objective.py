"""The objective of one optimizer step as a coefficient per token: counting comes before dividing.

With mask m, token loss l, task k of each token and task weights w, over ALL micro-batches and ALL ranks of the step:

    token        (sum_k w_k sum_{k} m*l) / (sum_k w_k sum_{k} m)              (published name: case1)
    sample       the same with a sample's mean loss for l and 1 for m         (case2)
    task_token   sum_k w_k * (sum_{k} m*l / sum_{k} m) / sum_k w_k            (case3, the default)
    task_sample  the same with sample means inside each task                  (case4)
    corpus       sum_k w_k * (sum_{k} m*l) / n_k / sum_k w_k,    n_k the mean trained tokens of task k in a step

Equal weights make token and sample the published objectives exactly: the mean over all tokens, or over all samples. Other weights
say how much a token (a sample) of each task counts beside one of another task, so weights and balancers act in every mode.

The counts of the whole step are known from the plan before its first forward, so each token's coefficient is a constant, the
objective is the plain sum of coefficient times loss, and neither the split into micro-batches, ranks, rows or packs nor padding
can change it. Host arithmetic only; no model, no device.

A task that is absent from a step: with `absent_task: renormalize` both sums over k run over the tasks that are present, which
share all of the weight; with `keep` the sum in the denominator runs over all tasks, so that an absent task's share is left
unused. A rare task counts for less than its weight with either. With `corpus` it does not: a token's coefficient is the same in
every step (w_k over the task's tokens in the corpus, times the steps of an epoch), so over an epoch each task has exactly its
weight however seldom it comes up, and no step needs to know what the other ranks hold.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.schema import LossConfig
from mftcoder.data.batches.loader import PackedBatch, StepCounts

NORMALIZATIONS = ("token", "sample", "task_token", "task_sample")


@dataclass(frozen=True)
class Objective:
    """What a step minimises."""

    normalization: str = "task_token"
    absent_task: str = "renormalize"
    expected_tokens: NDArray[np.float64] | None = None  # [K] mean trained tokens of each task in a step, for corpus
    focal: str = "none"
    focal_gamma: float = 2.0
    focal_detach: bool = True
    router_aux_loss_coef: float | None = None  # None: the model's own

    @classmethod
    def of(cls, config: LossConfig, expected_tokens: NDArray[np.float64]) -> "Objective":
        """The objective of a run."""
        return cls(**config.model_dump(), expected_tokens=expected_tokens)


def token_coefficients(batch: PackedBatch, counts: StepCounts, weights: TaskWeights, objective: Objective) -> Tensor:
    """Coefficient of each token's loss, float32 [B, L]; 0 where nothing is trained."""
    trained = (batch.targets != -100).numpy()
    scale = task_scales(counts, weights, objective)
    coefficients = np.where(trained, scale[batch.task_ids.numpy()], 0.0)
    if objective.normalization in ("sample", "task_sample"):
        coefficients /= np.maximum(trained_tokens_of_sample(batch.position_ids.numpy(), trained), 1)
    return torch.from_numpy(coefficients.astype(np.float32))


def task_scales(counts: StepCounts, weights: TaskWeights, objective: Objective) -> NDArray[np.float64]:
    """What a token (token, task_token, corpus) or a sample's mean (sample, task_sample) of each task is multiplied by [K]."""
    normalization = objective.normalization
    if normalization == "corpus":
        assert objective.expected_tokens is not None, "corpus needs the expected tokens"
        return weights.values / np.maximum(objective.expected_tokens, np.finfo(np.float64).tiny)
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"unknown normalization {normalization}")
    units = counts.samples if normalization in ("sample", "task_sample") else counts.tokens
    if normalization in ("token", "sample"):
        return weights.values / max(float(weights.values @ units), np.finfo(np.float64).tiny)
    present = np.where(units > 0, weights.values, 0.0)
    shared = weights.values.sum() if objective.absent_task == "keep" else present.sum()
    return present / max(shared, np.finfo(np.float64).tiny) / np.maximum(units, 1)


def trained_tokens_of_sample(position_ids: NDArray[np.int64], trained: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For each position, how many trained tokens its sample has [B, L]."""
    sample = (position_ids == 0).ravel().cumsum() - 1
    per_sample = np.bincount(sample, weights=trained.ravel()).astype(np.int64)
    return per_sample[sample].reshape(position_ids.shape)
