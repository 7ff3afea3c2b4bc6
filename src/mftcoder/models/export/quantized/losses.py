"""The loss of a model on fixed tokens, computed alike before and after quantization: in float32, one text at a time."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.models.export.drift import TEXTS

IGNORED = -100
FIXED_TEXTS = "fixed texts"
"""The name of the texts that are measured where there is no validation data."""


@dataclass(frozen=True)
class Text:
    """T positions: at position t a model reads `ids[t]`, and its loss on `targets[t]` counts unless that is -100."""

    ids: NDArray[np.int64]
    targets: NDArray[np.int64]


Texts = Mapping[str, Sequence[Text]]
"""The texts of each task."""


@dataclass(frozen=True)
class Measured:
    """What one task's texts gave."""

    loss: float  # mean over tokens, nats
    tokens: int
    texts: int


def fixed_texts(tokenizer: Tokenizer) -> Texts:
    """A few lines of code and prose, each token of which counts."""
    encoded = [np.array(tokenizer.encode(text), np.int64) for text in TEXTS]
    return {FIXED_TEXTS: [Text(ids[:-1], ids[1:]) for ids in encoded]}


@torch.inference_mode()
def measure(model: Any, texts: Texts) -> dict[str, Measured]:
    """The mean loss of each task. nan stays nan: a broken model is seen."""
    device = next(model.parameters()).device
    found = {}
    for task, group in texts.items():
        total, tokens = 0.0, 0
        for text in group:
            logits = model(input_ids=torch.from_numpy(text.ids)[None].to(device), use_cache=False).logits[0]  # [T, V]
            targets = torch.from_numpy(text.targets).to(device)
            counted = targets != IGNORED
            losses = torch.nn.functional.cross_entropy(logits[counted].float(), targets[counted], reduction="none")
            total += float(losses.double().sum())
            tokens += int(counted.sum())
        found[task] = Measured(total / tokens if tokens else math.nan, tokens, len(group))
    return found
