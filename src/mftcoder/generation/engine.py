"""What a generation engine is: prompts in, completions out. Torch-free, so that benchmarks and their tests need no engine.

An engine is built with its model and its sampling settings (one file an engine in this folder, one row in `registry.ENGINES`).
It knows nothing of benchmarks: it stops at the prompt's stop words and hands back the text as the model wrote it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Prompt:
    """One completion that is wanted. Sample `n` of a problem is a prompt of its own, so a run resumes to the sample."""

    problem_id: str  # unique within the run; the caller puts the task in front where tasks share their ids
    sample: (
        int  # from 0; seeds the sampling together with the problem, so the order of a run cannot change a completion
    )
    text: str
    stop: tuple[str, ...] = ()  # the text ends before the first of these; () stops at the model's EOS token only
    is_whole: Callable[[str], bool] | None = (
        None  # asked with the text so far each time a line ends; True ends the text
    )


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and how many there may be."""

    max_new_tokens: int = 512
    temperature: float = 0.0  # 0 is greedy: the likeliest token, always
    top_p: float = 1.0  # sample from the likeliest tokens that together have this probability
    seed: int = 0
    max_length: int | None = None  # tokens of prompt and completion together, where that is the smaller limit


@dataclass(frozen=True)
class Completion:
    """What a model wrote after one prompt: without the prompt, without the EOS token, cut before the first stop word."""

    problem_id: str
    sample: int
    text: str
    finish_reason: FinishReason  # "length": the token limit came first
    tokens: int  # tokens generated, the EOS token included


class Engine(Protocol):
    """Writes completions."""

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Completion]:
        """One completion for each prompt, in whatever order they get ready."""
        ...
