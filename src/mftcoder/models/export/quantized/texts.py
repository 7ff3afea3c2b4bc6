"""The texts of a quantization: those that calibrate it, and those whose loss is measured before and after it.

Calibration texts are prompts with answers, as they are written beside the release and read from a user's file. Losses are computed in
float32, one text at a time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import DataError
from mftcoder.jsonl import read_jsonl
from mftcoder.models.export.drift import TEXTS

CALIBRATION = "calibration.jsonl"
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


@dataclass(frozen=True)
class Calibrated:
    """One text: the prompt as the model reads it, in its chat template, and an answer with the text that ends it, if it was ended."""

    task: str
    origin: str
    prompt: str
    answer: str

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """Its tokens. No token crosses the border, as in training."""
        return [*tokenizer.encode(self.prompt), *tokenizer.encode(self.answer)]


def read_calibration(path: Path) -> list[Calibrated]:
    """The records of a file; each has `prompt` (in the model's template) and `answer`. DataError with a line for each bad record."""
    found, problems = [], []
    for number, record in read_jsonl(path):
        values = record if isinstance(record, dict) else {}
        texts = [values.get(name) for name in ("prompt", "answer")]
        if all(isinstance(text, str) for text in texts) and any(texts):
            found.append(Calibrated(str(values.get("task", "")), f"{path}:{number}", *map(str, texts)))
        else:
            problems.append(f"{path}:{number}: has no 'prompt' and 'answer' that are texts")
    if problems:
        raise DataError.collect(problems)
    if not found:
        raise DataError(f"{path}: holds no record; each line is a JSON object with 'prompt' and 'answer'")
    return found
