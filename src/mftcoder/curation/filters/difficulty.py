"""The step `difficulty`: what of a record a model reads, and what its losses say.

Instruction-following difficulty (Li et al. 2023, arXiv 2308.12032): the mean loss of the answer's tokens behind the question, over their mean
loss without it. Near 0 the question gives the answer away; from 1 on it does not help at all, so the two do not belong together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mftcoder.config.data import DataConfig
from mftcoder.curation.filters.config import DifficultyConfig
from mftcoder.data.records.conversation import Conversation
from mftcoder.data.rendering.templates import load_template, render
from mftcoder.data.rendering.tokenization import Segment, Tokens, encode_segments
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import DataError

IdsAndTrained = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""Token ids [T], and which of them are counted as targets [T]."""


class Scorer(Protocol):
    """A model that reads token ids."""

    def mean_losses(self, samples: Sequence[IdsAndTrained], batch_positions: int) -> list[float]:
        """The mean loss of each sample's counted tokens, in nats."""


@dataclass(frozen=True)
class _Pair:
    """The last answer behind its question, and alone behind one token."""

    behind_question: IdsAndTrained
    alone: IdsAndTrained


class AnswerPairs:
    """Renders and tokenizes records."""

    def __init__(self, config: DifficultyConfig):
        self.max_length = config.max_length
        self.tokenizer = load_tokenizer(config.model)
        data = DataConfig(chat_template=config.chat_template, train_on="last_assistant")
        self.template = load_template(data, self.tokenizer)
        bos = self.tokenizer.bos_id
        self._first = np.array([self.tokenizer.eos_id if bos is None else bos], np.int32)

    def of(self, conversations: Sequence[Conversation]) -> Iterator[_Pair | None]:
        """A pair for each; None for a plain text, for what the template refuses, and where no token of the answer is within max_length."""
        segments = [self._render(conversation) for conversation in conversations]
        tokens = iter(encode_segments(self.tokenizer, [found for found in segments if found is not None]))
        for found in segments:
            yield None if found is None else self._pair(next(tokens))

    def _render(self, conversation: Conversation) -> list[Segment] | None:
        try:
            return (
                None if conversation.is_text else render(conversation, self.template, self.tokenizer, "last_assistant")
            )
        except DataError:
            return None

    def _pair(self, tokens: Tokens) -> _Pair | None:
        ids, trained = tokens.ids[: self.max_length + 1], tokens.trained[: self.max_length + 1]
        counted = ids[trained]
        if not len(counted) or trained[0]:
            return None
        last = int(np.flatnonzero(trained)[-1]) + 1
        alone = np.concatenate([self._first, counted])
        return _Pair((ids[:last], trained[:last]), (alone, np.arange(len(alone)) > 0))


def difficulties(
    conversations: Sequence[Conversation], pairs: AnswerPairs, scorer: Scorer, batch_positions: int
) -> list[float | None]:
    """The difficulty of each record; None where there is no answer to a question, or the model is sure of it without one."""
    found = list(pairs.of(conversations))
    judged = [pair for pair in found if pair is not None]
    samples = [sample for pair in judged for sample in (pair.behind_question, pair.alone)]
    losses = iter(scorer.mean_losses(samples, batch_positions))
    return [None if pair is None else _ratio(next(losses), next(losses)) for pair in found]


def _ratio(behind_question: float, alone: float) -> float | None:
    return round(behind_question / alone, 4) if alone > 0 and np.isfinite(behind_question / alone) else None
