"""What is served, and how a request becomes requests to the engine: names, templates, token ids, limits.

Mistakes of a client are `ClientError`s, in the words and codes of the OpenAI protocol.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain

from mftcoder.data.records.conversation import ROLES, Message
from mftcoder.data.rendering.fill_in_the_middle import FillFormat, end_tokens, find_format, render_fill
from mftcoder.data.rendering.templates import Template, render_next
from mftcoder.data.rendering.tokenization import encode_inside, encode_segments
from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.data.tokenizers.word_completion import Vocabulary, held_tokens
from mftcoder.errors import DataError
from mftcoder.generation.engine import Sampling
from mftcoder.generation.live_engine import Request
from mftcoder.generation.prompt_tokens import text_ids
from mftcoder.registry import did_you_mean
from mftcoder.serving.protocol import MOST_CHOICES, Asked, ChatRequest, Choices, CompletionRequest, InfillRequest

COMPLETION_TOKENS = 16  # default of the protocol


class ClientError(Exception):
    """A request that is refused: its HTTP status, and what is wrong."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


@dataclass(frozen=True)
class Served:
    """One name that clients may ask for: the model itself, or an adapter over it."""

    name: str
    adapter: str | None = None
    template: Template | None = None
    chat_end_ids: frozenset[int] = frozenset()
    """Tokens that end an answer of a chat."""
    tail: str = ""
    """What the template writes between an answer and its end token."""


@dataclass(frozen=True)
class PromptTokens:
    """A prompt as token ids; `held` are those of its last word, where the word may go on."""

    ids: list[int]
    held: tuple[int, ...] = ()


@dataclass
class Catalogue:
    """Everything that can be asked for. `models[0]` answers requests that name no model."""

    models: Sequence[Served]
    tokenizer: Tokenizer
    end_ids: frozenset[int]
    context: int
    fill: FillFormat | None = field(init=False)

    def __post_init__(self) -> None:
        self.fill = find_format(self.tokenizer)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer)

    def find(self, name: str | None) -> Served:
        found = next((served for served in self.models if name in (served.name, None)), None)
        if found is None:
            hint = did_you_mean(str(name), [served.name for served in self.models])
            raise ClientError(404, f"The model '{name}' does not exist.{hint}", param="model", code="model_not_found")
        return found

    def chat(self, asked: ChatRequest) -> list[Request]:
        """The requests of a chat, one a choice."""
        served = self.find(asked.model)
        if served.template is None:
            raise ClientError(
                400,
                f"The model '{served.name}' has no chat template. Use /v1/completions, or start the server with --template.",
                param="messages",
            )
        messages = [Message(ROLES[message.role], message.text, False) for message in asked.messages]
        _check_turns(messages)
        try:
            segments = render_next(served.template, messages)
        except DataError as error:
            raise ClientError(400, str(error), param="messages") from error
        limit = self._limit(asked.max_completion_tokens or asked.max_tokens or -1)
        noted = (asked.top_logprobs or 0) if asked.logprobs else None
        ids = encode_segments(self.tokenizer, [segments])[0].ids.tolist()
        found = self._room(PromptTokens(ids), "messages")
        requests = self._requests(asked, served, [found], limit, served.chat_end_ids, noted)
        return [replace(request, tail=served.tail) for request in requests]

    def completions(self, asked: CompletionRequest) -> list[Request]:
        """The requests of a completion: n for each prompt, in the order of the prompts."""
        served = self.find(asked.model)
        prompts, ends = self._prompts(asked.prompt), self.end_ids
        if len(prompts) * (asked.n or 1) > MOST_CHOICES:
            raise ClientError(400, f"Prompts times n must be at most {MOST_CHOICES}.", param="n")
        if asked.suffix is not None:
            ends |= self._fill_ends()
            found = [self._fill(asked, self._text(prompt), asked.suffix) for prompt in prompts]
        else:
            found = [self._whole(asked, prompt) for prompt in prompts]
        found = [self._room(prompt, "prompt") for prompt in found]
        limit = self._limit(asked.max_tokens or COMPLETION_TOKENS)
        return self._requests(asked, served, found, limit, ends, asked.logprobs)

    def infill(self, asked: InfillRequest) -> Request:
        """The request of /infill."""
        served = self.find(asked.model)
        files = [(extra.filename, extra.text) for extra in asked.input_extra]
        found = self._room(
            self._fill(asked, asked.input_prefix, asked.input_suffix, files, asked.prompt), "input_prefix"
        )
        limit = self._limit(asked.n_predict)
        ends = self.end_ids | self._fill_ends()
        return self._requests(asked, served, [found], limit, ends, None, temperature=0.0)[0]

    def _limit(self, tokens: int) -> int:
        """Most tokens of a text; -1 asks for the rest of the context."""
        return self.context if tokens < 0 else tokens

    def _whole(self, asked: Asked, prompt: str | list[int]) -> PromptTokens:
        """A prompt that the model goes on from. Token ids are taken as they are."""
        if not isinstance(prompt, str):
            return PromptTokens(prompt)
        ids = text_ids(prompt, self.tokenizer, add_special_tokens=True)
        count = min(self._held(asked, prompt, ids), len(ids) - 1)  # the model needs a token to begin with
        return PromptTokens(ids[: len(ids) - count], tuple(ids[len(ids) - count :]))

    def _held(self, asked: Asked, text: str, ids: Sequence[int]) -> int:
        return held_tokens(text, ids, self.vocabulary) if asked.complete_word else 0

    def _prompts(self, prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise ClientError(400, "The list of prompts is empty.", param="prompt")
        several = [prompt] if isinstance(prompt[0], int) else prompt
        return [one if isinstance(one, str) else self._known_ids(one) for one in several]

    def _known_ids(self, ids: list[int]) -> list[int]:
        if any(not 0 <= number < self.tokenizer.vocab_size for number in ids):
            raise ClientError(400, f"Token ids must be from 0 to {self.tokenizer.vocab_size - 1}.", param="prompt")
        return ids

    def _text(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt)

    def _fill(
        self, asked: Asked, prefix: str, suffix: str, files: Sequence[tuple[str, str]] = (), middle: str = ""
    ) -> PromptTokens:
        """The prompt of a gap whose text begins with `middle`. The last word before the gap is written again."""
        if self.fill is None:
            raise ClientError(
                400,
                f"The model '{self.models[0].name}' cannot fill in the middle: its vocabulary has no tokens for it.",
                param="suffix",
            )
        found = render_fill(self.fill, self.tokenizer, prefix, suffix, files)
        begun = encode_inside(self.tokenizer, middle) if middle else []
        last, ids = (middle, begun) if middle else (prefix, list(found.prefix))
        count = self._held(asked, last, ids)
        kept, held = ids[: len(ids) - count], tuple(ids[len(ids) - count :])
        whole = (found.prefix, found.after, kept) if middle else (kept, found.after)
        return PromptTokens([*found.before, *chain.from_iterable(whole)], held)

    def _fill_ends(self) -> frozenset[int]:
        return end_tokens(self.fill, self.tokenizer) if self.fill else frozenset()

    def _room(self, prompt: PromptTokens, param: str) -> PromptTokens:
        """The prompt, if at least one token can follow it."""
        size = len(prompt.ids) + len(prompt.held)
        if not size:
            raise ClientError(400, "The prompt is empty.", param=param)
        if size >= self.context:
            raise ClientError(
                400,
                f"This model's maximum context length is {self.context} tokens. However, your prompt has {size} tokens. "
                "Please shorten it.",
                param=param,
                code="context_length_exceeded",
            )
        return prompt

    def _requests(
        self,
        asked: Asked,
        served: Served,
        prompts: Sequence[PromptTokens],
        limit: int,
        end_ids: frozenset[int],
        logprobs: int | None,
        temperature: float = 1.0,
    ) -> list[Request]:
        seed = secrets.randbits(62) if asked.seed is None else asked.seed
        sampling = Sampling(
            limit,
            temperature if asked.temperature is None else asked.temperature,
            1.0 if asked.top_p is None else asked.top_p,
            seed,
            top_k=max(asked.top_k or 0, 0),
            min_p=asked.min_p or 0.0,
            temperature_last=isinstance(asked, Choices) and asked.samplers is not None,
        )
        count = (asked.n or 1) if isinstance(asked, Choices) else 1
        return [
            Request(
                prompt.ids,
                sampling,
                end_ids,
                asked.stop_words,
                number * count + sample,
                logprobs,
                served.adapter,
                prompt.held,
                whole=not asked.stream,
            )
            for number, prompt in enumerate(prompts)
            for sample in range(count)
        ]


def _check_turns(messages: Sequence[Message]) -> None:
    """ClientError for chats that no template of ours renders as trained."""
    if messages[-1].role != "user":
        raise ClientError(400, "The last message must be the user's.", param="messages")
    for number, message in enumerate(messages):
        if message.role == "system" and number:
            raise ClientError(400, "A system message must be the first message.", param="messages")
