"""Prompts as token ids, with the room that each leaves for its completion; the same for every engine.

Goes in: prompts, the tokenizer, how many positions the model has. Comes out: a `TokenPrompt` each, or a GenerationError that names all
prompts which leave no room.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import GenerationError
from mftcoder.generation.engine import Completion, Prompt, Sampling


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as a model reads it."""

    prompt: Prompt
    ids: list[int]
    limit: int  # tokens that may be generated; 0 if the prompt alone fills the length that was allowed


def token_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, sampling: Sampling, *, positions: int, add_special_tokens: bool
) -> list[TokenPrompt]:
    """Prompts in the order given. `add_special_tokens` lets the tokenizer put its BOS token before them (not for chats)."""
    found, problems = [], []
    for prompt in prompts:
        # The BOS token is not doubled where the text already has it.
        add = add_special_tokens and not (tokenizer.bos_token and prompt.text.startswith(tokenizer.bos_token))
        ids = list(tokenizer.backend.encode(prompt.text, add_special_tokens=add).ids)
        room = positions - len(ids)
        if room <= 0 or not ids:
            what = f"has {len(ids):,} tokens, the model room for {positions:,}" if ids else "is empty"
            problems.append(f"{prompt.problem_id}: the prompt {what}")
        allowed = room if sampling.max_length is None else sampling.max_length - len(ids)
        found.append(TokenPrompt(prompt, ids, max(0, min(sampling.max_new_tokens, room, allowed))))
    if problems:
        raise GenerationError.collect(problems)
    return found


def without_room(prompts: Sequence[TokenPrompt]) -> tuple[list[TokenPrompt], list[Completion]]:
    """The prompts that a model can go on from, and an empty completion for each of the others."""
    able = [item for item in prompts if item.limit]
    full = [item.prompt for item in prompts if not item.limit]
    return able, [Completion(prompt.problem_id, prompt.sample, "", "length", 0) for prompt in full]


def sample_seed(prompt: Prompt, seed: int) -> int:
    """128 bits for one sample's random numbers: the same for the same seed, problem and sample anywhere."""
    key = hashlib.sha256(f"{seed}\0{prompt.problem_id}\0{prompt.sample}".encode()).digest()
    return int.from_bytes(key[:16], "little")
