"""Completions of many prompts from a model in this process: a batch that is kept full, longest prompts first.

A row ends at an EOS token, a stop word, or the token limit. The next prompt then takes its place at once.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import GenerationError
from mftcoder.generation.batches.batch import GAP, PREFILL_TOKENS, Batch, open_batch
from mftcoder.generation.batches.row import DAMAGED, Row
from mftcoder.generation.engine import Completion, FinishReason, Prompt, Sampling
from mftcoder.generation.prompt_tokens import TokenPrompt, split_by_limit, token_prompts
from mftcoder.generation.sampler import random_stream
from mftcoder.generation.text_stream import TextStream
from mftcoder.processes import keep_freed_memory


@dataclass(frozen=True)
class Draft:
    """A completion that is being generated."""

    prompt: Prompt
    row: Row
    text: TextStream


class BatchEngine:
    """Writes completions with a causal language model: of transformers, in evaluation mode, or compiled by OpenVINO."""

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
        if model.device.type == "cpu":
            keep_freed_memory()
        self.tokenizer = tokenizer
        self.sampling = sampling
        self.end_ids = frozenset(end_ids)
        self.batch_size = batch_size
        self.add_special_tokens = add_special_tokens
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.max_positions = int(positions) if positions else 1 << 30

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Completion]:
        """One completion for each prompt, when it is ready. GenerationError lists prompts that are too long for the model.

        Also for logits that are not finite numbers.
        """
        possible, full = split_by_limit(self._tokenized(prompts))
        yield from full
        waiting = deque(sorted(map(self._draft, possible), key=lambda draft: -len(draft.row.ids)))
        if not waiting:
            return
        capacity = max(len(draft.row.ids) + draft.row.limit for draft in waiting) + GAP
        rows = min(self.batch_size, len(waiting))
        batch = open_batch(self.model, self.tokenizer.pad_id, max_rows=rows, capacity=capacity)
        active: list[Draft] = []
        while waiting or active:
            free = rows - len(active)
            if waiting and free >= max(1, rows // 8):
                added = _next(waiting, free)
                batch.add([draft.row for draft in added])
                active += added
            else:
                added = active
                batch.step()
            for draft in added:
                if not draft.row.finite:
                    name = self.model.config.name_or_path or type(self.model).__name__
                    raise GenerationError(f"{name}: {draft.prompt.problem_id}: {DAMAGED}")
                if draft.row.tokens[-1] not in self.end_ids:
                    draft.text.add(draft.row.tokens[-1])
            yield from self._collect(active, batch)

    def _tokenized(self, prompts: Sequence[Prompt]) -> list[TokenPrompt]:
        positions, add = self.max_positions, self.add_special_tokens
        return token_prompts(prompts, self.tokenizer, self.sampling, positions=positions, add_special_tokens=add)

    def _draft(self, item: TokenPrompt) -> Draft:
        row = Row(item.ids, item.limit, self.sampling, random_stream(item.prompt, self.sampling.seed))
        return Draft(item.prompt, row, TextStream(self.tokenizer, item.ids, item.prompt.stop))

    def _collect(self, active: list[Draft], batch: Batch) -> Iterator[Completion]:
        """Remove finished rows from the batch and yield their completions."""
        for row in range(len(active) - 1, -1, -1):
            completion = self._finished(active[row])
            if completion is not None:
                batch.remove(row)
                active[row] = active[-1]
                active.pop()
                yield completion

    def _finished(self, draft: Draft) -> Completion | None:
        tokens, text = draft.row.tokens, draft.text
        full = len(tokens) >= draft.row.limit
        stopped = tokens[-1] in self.end_ids or text.stopped or self._is_whole(draft)
        if not stopped and not full:
            return None
        text.finish()
        reason: FinishReason = "stop" if stopped or text.stopped else "length"
        return Completion(draft.prompt, text.text, reason, len(tokens))

    def _is_whole(self, draft: Draft) -> bool:
        """Whether the last token ends a line, and the complete lines of the text satisfy the prompt's `is_whole`."""
        is_whole, last = draft.prompt.is_whole, draft.row.tokens[-1:]
        if is_whole is None or "\n" not in self.tokenizer.decode(last, skip_special_tokens=True):
            return False
        lines, line_break, _ = draft.text.text.rpartition("\n")
        return bool(line_break and is_whole(lines + line_break))


def _next(waiting: deque[Draft], free: int) -> list[Draft]:
    """The next prompts, as many as fit into free rows and into one forward pass."""
    count = min(free, len(waiting), max(1, PREFILL_TOKENS // len(waiting[0].row.ids)))
    return [waiting.popleft() for _ in range(count)]
