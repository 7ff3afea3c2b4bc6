"""The loss of given tokens under a causal language model. Nothing is generated and nothing is trained."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from mftcoder.config.schema import ModelConfig
from mftcoder.models.loading.load import load_model

_LOGIT_ROWS = 256
"""Targets whose logits are turned into float32 at a time."""


class AnswerLoss:
    """Reads samples in batches of bounded size, on a GPU if there is one."""

    def __init__(self, config: ModelConfig):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = load_model(config, attn_implementation="sdpa", device=self.device)

    def mean_losses(
        self, samples: Sequence[tuple[NDArray[np.int32], NDArray[np.bool_]]], batch_positions: int
    ) -> list[float]:
        """The mean loss in nats over the tokens of each sample that are marked; the first token has no loss."""
        order = sorted(range(len(samples)), key=lambda index: -len(samples[index][0]))
        found = [0.0] * len(samples)
        for batch in _batches(order, [len(ids) for ids, _ in samples], batch_positions):
            for index, loss in zip(batch, self._batch([samples[index] for index in batch]), strict=True):
                found[index] = loss
        return found

    @torch.inference_mode()
    def _batch(self, samples: Sequence[tuple[NDArray[np.int32], NDArray[np.bool_]]]) -> list[float]:
        """Padding stands behind the tokens, where a causal model does not see it."""
        length = max(len(ids) for ids, _ in samples)
        input_ids = torch.zeros(len(samples), length, dtype=torch.long)  # [B, L]
        mask = torch.zeros_like(input_ids)
        counted = torch.zeros(len(samples), length, dtype=torch.bool)
        for row, (ids, trained) in enumerate(samples):
            input_ids[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
            mask[row, : len(ids)] = 1
            counted[row, : len(ids)] = torch.from_numpy(trained)
        logits = self.model(input_ids=input_ids.to(self.device), attention_mask=mask.to(self.device)).logits
        places = counted[:, 1:].nonzero()  # [N, 2] the positions before the marked tokens
        rows, positions = places.unbind(1)
        targets = input_ids[rows, positions + 1]
        losses = torch.cat(
            [
                functional.cross_entropy(
                    logits[part_rows, part].float(), target.to(self.device), reduction="none"
                ).cpu()
                for part_rows, part, target in zip(
                    rows.split(_LOGIT_ROWS), positions.split(_LOGIT_ROWS), targets.split(_LOGIT_ROWS), strict=True
                )
            ]
        ).double()  # [N]
        sums = torch.zeros(len(samples), dtype=torch.float64).index_add_(0, rows, losses)
        return [float(value) for value in sums / counted[:, 1:].sum(1)]


def _batches(order: Sequence[int], lengths: Sequence[int], batch_positions: int) -> Iterator[list[int]]:
    """Indices, the longest first, so that the first of a batch is its width. At least one a batch."""
    batch: list[int] = []
    for index in order:
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_positions:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
