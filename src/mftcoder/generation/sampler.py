"""Logits -> next tokens: greedy, or sampled with a separate random stream for each row.

For each token, a row draws one number in [0, 1) from a stream seeded by run seed, problem and sample, and takes the token at that
point of the cumulative distribution. So the other rows of a batch and their order do not matter.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mftcoder.generation.engine import Prompt, Sampling
from mftcoder.generation.prompt_tokens import sample_seed

NOT_FINITE = -1
"""In the place of a token, where the logits are not finite numbers. It comes with the tokens, so that a GPU is not waited for twice."""
_COLDEST = 1e-30  # temperature below which a logit divided by it may be no float32: sampling is greedy long before
MOST_PROBABLE = 256  # enough in most cases, and cheaper to find than sorting the vocabulary


def random_stream(prompt: Prompt, seed: int) -> np.random.Generator:
    """The random stream of one sample; it depends only on seed, problem and sample."""
    return np.random.default_rng(sample_seed(prompt, seed))


def choose_tokens(logits: Tensor, samplings: Sequence[Sampling], streams: Sequence[np.random.Generator]) -> list[int]:
    """The next token of each row of logits [rows, vocabulary], each row with its own temperature and bounds; NOT_FINITE as in `next_tokens`."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for row, one in enumerate(samplings):
        kind = (one.temperature, one.top_p, one.top_k, one.min_p, one.temperature_last)
        groups.setdefault(kind, []).append(row)
    if len(groups) == 1:
        return next_tokens(logits, samplings[0], streams)
    chosen = [0] * len(samplings)
    for rows in groups.values():
        tokens = next_tokens(logits[rows], samplings[rows[0]], [streams[row] for row in rows])
        for row, token in zip(rows, tokens, strict=True):
            chosen[row] = token
    return chosen


def next_tokens(logits: Tensor, sampling: Sampling, streams: Sequence[np.random.Generator]) -> list[int]:
    """The next token of each row of logits [rows, vocabulary]; NOT_FINITE where one of them is NaN or inf, or all are -inf."""
    if sampling.temperature < _COLDEST:
        highest, first = logits.max(dim=-1)
        return torch.where(highest.isfinite(), first, NOT_FINITE).tolist()
    draws = torch.tensor([stream.random() for stream in streams], dtype=torch.float32, device=logits.device)
    probabilities = torch.softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.takes_all:
        return _at(probabilities, draws).tolist()
    judged = torch.softmax(logits.float(), dim=-1) if sampling.temperature_last else probabilities
    likely, ids = judged.topk(min(MOST_PROBABLE, judged.shape[-1]), dim=-1)
    if not _holds_all(likely, sampling):
        likely, ids = judged.sort(dim=-1, descending=True)
    kept = probabilities.gather(1, ids).masked_fill(~_allowed(likely, sampling), 0.0)
    places = _at(kept, draws)
    tokens = ids.gather(1, places.clamp(min=0)[:, None])[:, 0]
    return torch.where(places < 0, places, tokens).tolist()


def _holds_all(likely: Tensor, sampling: Sampling) -> bool:
    """Whether the most probable tokens of each row [rows, tokens] hold all that may be sampled, and what top_p is a share of."""
    if sampling.top_k:
        return sampling.top_k <= likely.shape[-1]
    if (likely[:, -1] < sampling.min_p * likely[:, 0]).all():
        return True
    of_all = not sampling.min_p or sampling.temperature_last
    return sampling.top_p < 1 and of_all and bool((likely.sum(dim=-1) >= sampling.top_p).all())


def _allowed(likely: Tensor, sampling: Sampling) -> Tensor:
    """Which of the tokens may be sampled; their probabilities [rows, tokens] fall from left to right."""
    probable = likely >= sampling.min_p * likely[:, :1]
    first = torch.arange(likely.shape[-1], device=likely.device) < (sampling.top_k or likely.shape[-1])
    left = likely * (first if sampling.temperature_last else first & probable)
    of_all = not sampling.top_k and (not sampling.min_p or sampling.temperature_last)
    most = sampling.top_p if of_all else sampling.top_p * left.sum(dim=-1, keepdim=True)
    return probable & first & (left.cumsum(dim=-1) - left < most)


def _at(weights: Tensor, draws: Tensor) -> Tensor:
    """Per row the index where the running sum exceeds `draw * total`; never one of weight 0. NOT_FINITE where all are 0 or NaN."""
    running = weights.cumsum(dim=-1)
    index = torch.searchsorted(running, (draws * running[:, -1])[:, None], right=True)[:, 0]
    last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).int().argmax(dim=-1)
    return torch.where(running[:, -1] > 0, torch.minimum(index, last), NOT_FINITE)
