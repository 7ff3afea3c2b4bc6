"""Completions from a transformers model: a batch that is kept full, longest prompts first.

A row ends at an EOS token, a stop word, or the token limit. The next prompt then takes its place at once.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.generation.engine import Completion, FinishReason, Prompt, Sampling
from mftcoder.generation.prompt_tokens import TokenPrompt, split_by_limit, token_prompts
from mftcoder.generation.sampler import next_tokens, random_stream
from mftcoder.generation.slots import SlotTable

PREFILL_TOKENS = 8192  # prompt tokens of one forward pass, which bounds its memory
GAP = 64  # spare columns, so that the cache is moved left at most once in as many steps


@dataclass
class Draft:
    """A completion that is being generated."""

    prompt: Prompt
    ids: list[int]  # the prompt's tokens
    limit: int  # tokens that may be generated
    stream: np.random.Generator
    tokens: list[int] = field(default_factory=list)


class TransformersEngine:
    """Writes completions with a causal language model in evaluation mode."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        sampling: Sampling,
        *,
        end_ids: Sequence[int],
        batch_size: int = 16,
        add_special_tokens: bool = True,
    ):
        """`end_ids` are tokens that end a text. `add_special_tokens` puts the BOS token before a prompt (not for chats)."""
        self.model = model
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.end_ids = frozenset(end_ids)
        self.batch_size = batch_size
        self.add_special_tokens = add_special_tokens
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_positions = int(positions) if positions else 1 << 30

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Completion]:
        """One completion for each prompt, when it is ready. GenerationError lists prompts that are too long for the model."""
        possible, full = split_by_limit(self._tokenized(prompts))
        yield from full
        waiting = deque(sorted(map(self._draft, possible), key=lambda draft: -len(draft.ids)))
        if not waiting:
            return
        capacity = max(len(draft.ids) + draft.limit for draft in waiting) + GAP
        table = SlotTable(max_rows=min(self.batch_size, len(waiting)), capacity=capacity, device=self.model.device)
        active: list[Draft] = []
        while waiting or active:
            free = table.max_rows - len(active)
            if waiting and free >= max(1, table.max_rows // 8):
                active += self._admit(waiting, free, table)
            else:
                self._step(active, table)
            yield from self._collect(active, table)

    def _tokenized(self, prompts: Sequence[Prompt]) -> list[TokenPrompt]:
        positions, add = self.max_positions, self.add_special_tokens
        return token_prompts(prompts, self.tokenizer, self.sampling, positions=positions, add_special_tokens=add)

    def _draft(self, item: TokenPrompt) -> Draft:
        return Draft(item.prompt, item.ids, item.limit, random_stream(item.prompt, self.sampling.seed))

    def _admit(self, waiting: deque[Draft], free: int, table: SlotTable) -> list[Draft]:
        """Prefill prompts into free slots, as many as one forward pass may have, and choose their first tokens."""
        table.close_gap(GAP)
        longest = len(waiting[0].ids)
        if table.rows and longest > table.length:
            raise AssertionError("prompts are admitted longest first")
        count = min(free, len(waiting), max(1, PREFILL_TOKENS // longest))
        admitted = [waiting.popleft() for _ in range(count)]
        logits, cache = self._prefill([draft.ids for draft in admitted])
        table.add(cache, [len(draft.ids) for draft in admitted])
        self._append(logits, admitted)
        return admitted

    @torch.no_grad()
    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, DynamicCache]:
        """Logits of each prompt's next token [rows, vocabulary], and the cache of all prompts, right-aligned."""
        width = max(map(len, prompts))
        padded = [[self.tokenizer.pad_id] * (width - len(ids)) + list(ids) for ids in prompts]
        seen = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
        mask = torch.tensor(seen, device=self.model.device)  # [rows, width]
        cache = DynamicCache()
        output = self.model(
            input_ids=torch.tensor(padded, device=self.model.device),
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1], cache

    @torch.no_grad()
    def _step(self, active: list[Draft], table: SlotTable) -> None:
        """Generate one more token for every row."""
        if table.length == table.capacity:
            table.close_gap(1)
        output = self.model(
            input_ids=torch.tensor([[draft.tokens[-1]] for draft in active], device=self.model.device),
            attention_mask=table.mask(),
            position_ids=table.positions(),
            past_key_values=table.cache,
            use_cache=True,
        )
        table.length += 1
        self._append(output.logits[:, -1], active)

    def _append(self, logits: Tensor, drafts: Sequence[Draft]) -> None:
        chosen = next_tokens(logits, self.sampling, [draft.stream for draft in drafts])
        for draft, token in zip(drafts, chosen, strict=True):
            draft.tokens.append(token)

    def _collect(self, active: list[Draft], table: SlotTable) -> Iterator[Completion]:
        """Remove finished rows from the batch and yield their completions."""
        for row in range(len(active) - 1, -1, -1):
            completion = self._finished(active[row])
            if completion is not None:
                table.remove(row)
                active[row] = active[-1]
                active.pop()
                yield completion

    def _finished(self, draft: Draft) -> Completion | None:
        ended = draft.tokens[-1] in self.end_ids
        full = len(draft.tokens) >= draft.limit
        if not ended and not full and not self._may_stop(draft):
            return None
        text = self._decode(draft.tokens[:-1] if ended else draft.tokens)
        cut = min((found for word in draft.prompt.stop if (found := text.find(word)) >= 0), default=None)
        stopped = ended or cut is not None or _is_whole(draft.prompt, text)
        if not stopped and not full:
            return None
        reason: FinishReason = "stop" if stopped else "length"
        return Completion(draft.prompt.problem_id, draft.prompt.sample, text[:cut], reason, len(draft.tokens))

    def _may_stop(self, draft: Draft) -> bool:
        """A quick check on the last tokens: whether a line ends that `is_whole` must see, or a stop word may be in the text.

        Each token has at least one byte, so a window of as many tokens as the longest stop word has bytes is enough.
        """
        if draft.prompt.is_whole and "\n" in self._decode(draft.tokens[-1:]):
            return True
        if not draft.prompt.stop:
            return False
        window = max(len(word.encode()) for word in draft.prompt.stop) + 4
        tail = self._decode(draft.tokens[-window:])
        return any(word in tail for word in draft.prompt.stop)

    def _decode(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)


def _is_whole(prompt: Prompt, text: str) -> bool:
    """Whether the complete lines of `text` satisfy the prompt's `is_whole`."""
    lines, line_break, _ = text.rpartition("\n")
    return bool(prompt.is_whole and line_break and prompt.is_whole(lines + line_break))
