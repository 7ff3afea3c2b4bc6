"""Prompts as token ids, with the number of tokens that each completion may have; the same for every engine."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import GenerationError
from mftcoder.generation.engine import Completion, Prompt, Sampling


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt as token ids."""

    prompt: Prompt
    ids: list[int]
    limit: int  # tokens that may be generated; 0 if the prompt alone fills sampling.max_length


def token_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, sampling: Sampling, *, positions: int, add_special_tokens: bool
) -> list[TokenPrompt]:
    """Prompts in the order given. GenerationError lists all that are empty or too long for the model.

    `add_special_tokens` lets the tokenizer put the BOS token before them (not for chats).
    """
    found, problems = [], []
    for prompt in prompts:
        ids = text_ids(prompt.text, tokenizer, add_special_tokens=add_special_tokens)
        free = positions - len(ids)
        if free <= 0 or not ids:
            what = f"has {len(ids):,} tokens, the model only {positions:,} positions" if ids else "is empty"
            problems.append(f"{prompt.problem_id}: the prompt {what}")
        allowed = free if sampling.max_length is None else sampling.max_length - len(ids)
        found.append(TokenPrompt(prompt, ids, max(0, min(sampling.max_new_tokens, free, allowed))))
    if problems:
        raise GenerationError.collect(problems)
    return found


def text_ids(text: str, tokenizer: Tokenizer, *, add_special_tokens: bool) -> list[int]:
    """The ids of one prompt. It gets no second BOS token if the text already begins with it."""
    add = add_special_tokens and not (tokenizer.bos_token and text.startswith(tokenizer.bos_token))
    return list(tokenizer.backend.encode(text, add_special_tokens=add).ids)


def split_by_limit(prompts: Sequence[TokenPrompt]) -> tuple[list[TokenPrompt], list[Completion]]:
    """The prompts that allow at least one token, and an empty completion for each of the others."""
    able = [item for item in prompts if item.limit]
    full = [item.prompt for item in prompts if not item.limit]
    return able, [Completion(prompt, "", "length", 0) for prompt in full]


def sample_seed(prompt: Prompt, seed: int) -> int:
    """128 bits that seed one sample's random numbers; they depend only on seed, task, problem and sample."""
    key = "\0".join((str(seed), prompt.task, prompt.problem_id, str(prompt.sample)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "little")
