"""Logits to next tokens: greedy, or drawn with a random stream of each row's own.

A row draws one number in [0, 1) a token from a stream seeded by run seed, problem and sample, and takes the token at that point
of the cumulative distribution: which rows share a batch, and in what order, plays no part.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mftcoder.generation.engine import Prompt, Sampling
from mftcoder.generation.prompt_tokens import sample_seed

LIKELIEST = 256  # top-p rarely reaches past these, and finding them is cheaper than sorting the vocabulary


def random_stream(prompt: Prompt, seed: int) -> np.random.Generator:
    """The stream of one sample; the same for the same seed, problem and sample anywhere."""
    return np.random.default_rng(sample_seed(prompt, seed))


def next_tokens(logits: Tensor, sampling: Sampling, streams: Sequence[np.random.Generator]) -> list[int]:
    """The next token of each row of logits [rows, vocabulary]."""
    if sampling.temperature == 0:
        chosen: list[int] = logits.argmax(dim=-1).tolist()
        return chosen
    draws = torch.tensor([stream.random() for stream in streams], dtype=torch.float32, device=logits.device)
    probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p >= 1:
        return _at(probabilities, draws).tolist()
    likely, ids = probabilities.topk(min(LIKELIEST, probabilities.shape[-1]), dim=-1)
    if (likely.sum(dim=-1) < sampling.top_p).any():
        likely, ids = probabilities.sort(dim=-1, descending=True)
    before = likely.cumsum(dim=-1) - likely
    kept = likely.masked_fill(before >= sampling.top_p, 0.0)
    return ids.gather(1, _at(kept, draws)[:, None])[:, 0].tolist()


def _at(weights: Tensor, draws: Tensor) -> Tensor:
    """Per row the index at which the running sum passes `draw * total`; never one of weight 0."""
    running = weights.cumsum(dim=-1)
    index = torch.searchsorted(running, (draws * running[:, -1])[:, None], right=True)[:, 0]
    last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).int().argmax(dim=-1)
    return torch.minimum(index, last)
