"""The protocol of generation engines: prompts -> completions. Torch-free, so that benchmarks need no engine.

An engine is made with its model and its sampling settings. It stops at the prompt's stop words and returns the text as the model
wrote it. To add an engine, write one file in this folder and one line in `registry.ENGINES`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Prompt:
    """The prompt of one completion. Each sample of a problem has a prompt of its own, so a run can continue at any sample."""

    task: str
    problem_id: str
    """Unique within the task."""
    sample: int
    """From 0. It seeds the sampling together with task and problem, so that the order of a run does not change a completion."""
    text: str
    stop: tuple[str, ...] = ()
    """The text ends before the first of these; () stops only at the model's EOS token."""
    is_whole: Callable[[str], bool] | None = None
    """Called with the text so far each time a line ends; True ends the text."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, and the largest number of tokens."""

    max_new_tokens: int = 512
    temperature: float = 0.0  # 0 is greedy: always the most probable token
    top_p: float = 1.0  # sample from the most probable tokens that together have this probability
    seed: int = 0
    max_length: int | None = None  # limit for the tokens of prompt and completion together
    top_k: int = 0  # sample from this many of the most probable tokens; 0: from all
    min_p: float = 0.0  # leave out tokens that are less probable than the most probable one times this
    temperature_last: bool = False
    """Choose the tokens by the model's own probabilities, as llama.cpp does, and not by those after the temperature.

    False: min_p, top_k, top_p, as vLLM does. True: top_k, top_p, min_p, temperature. top_p is a share of what is left before it.
    """

    @property
    def takes_all(self) -> bool:
        """Whether every token can be sampled."""
        return self.top_p >= 1 and not self.top_k and not self.min_p


@dataclass(frozen=True)
class Completion:
    """The text that a model wrote after one prompt, without the EOS token and cut before the first stop word."""

    prompt: Prompt
    text: str
    finish_reason: FinishReason  # "length": stopped by the token limit
    tokens: int  # tokens generated, the EOS token included


class Engine(Protocol):
    """Writes completions."""

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Completion]:
        """One completion for each prompt, in any order."""
