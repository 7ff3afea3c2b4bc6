"""What is served, and how a request becomes requests to the engine: names, templates, token ids, limits.

Mistakes of a client are `ClientError`s, in the words and codes of the OpenAI protocol.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from mftcoder.data.records.conversation import ROLES, Message
from mftcoder.data.rendering.fill_in_the_middle import FillFormat, end_tokens, find_format, render_fill
from mftcoder.data.rendering.templates import Template
from mftcoder.data.tokenizers.tokenizer import Tokenizer
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

    def find(self, name: str | None) -> Served:
        """The model of this name."""
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
            prompt = served.template.render_prompt(messages)
        except DataError as error:
            raise ClientError(400, str(error), param="messages") from error
        limit = asked.max_completion_tokens or asked.max_tokens or self.context
        noted = (asked.top_logprobs or 0) if asked.logprobs else None
        ids = self._room(self.tokenizer.encode(prompt), "messages")
        return self._requests(asked, served, [ids], limit, served.chat_end_ids, noted)

    def completions(self, asked: CompletionRequest) -> list[Request]:
        """The requests of a completion: n for each prompt, in the order of the prompts."""
        served = self.find(asked.model)
        prompts, ends = self._prompts(asked.prompt), self.end_ids
        if len(prompts) * (asked.n or 1) > MOST_CHOICES:
            raise ClientError(400, f"Prompts times n must be at most {MOST_CHOICES}.", param="n")
        if asked.suffix is not None:
            prompts = [self._fill(self._text(prompt), asked.suffix) for prompt in prompts]
            ends |= self._fill_ends()
        found = [
            self._room(
                text_ids(prompt, self.tokenizer, add_special_tokens=True) if isinstance(prompt, str) else prompt,
                "prompt",
            )
            for prompt in prompts
        ]
        return self._requests(asked, served, found, asked.max_tokens or COMPLETION_TOKENS, ends, asked.logprobs)

    def infill(self, asked: InfillRequest) -> Request:
        """The request of /infill."""
        served = self.find(asked.model)
        files = [(extra.filename, extra.text) for extra in asked.input_extra]
        ids = [
            *self._fill(asked.input_prefix, asked.input_suffix, files),
            *(self.tokenizer.encode(asked.prompt) if asked.prompt else ()),
        ]
        limit = self.context if asked.n_predict < 0 else asked.n_predict
        return self._requests(
            asked,
            served,
            [self._room(ids, "input_prefix")],
            limit,
            self.end_ids | self._fill_ends(),
            None,
            temperature=0.0,
        )[0]

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

    def _fill(self, prefix: str, suffix: str, files: Sequence[tuple[str, str]] = ()) -> list[int]:
        if self.fill is None:
            raise ClientError(
                400,
                f"The model '{self.models[0].name}' cannot fill in the middle: its vocabulary has no tokens for it.",
                param="suffix",
            )
        found = render_fill(self.fill, self.tokenizer, prefix, suffix, files)
        return [*found.before, *found.prefix, *found.after]

    def _fill_ends(self) -> frozenset[int]:
        return end_tokens(self.fill, self.tokenizer) if self.fill else frozenset()

    def _room(self, ids: list[int], param: str) -> list[int]:
        """The ids, if at least one token can follow them."""
        if not ids:
            raise ClientError(400, "The prompt is empty.", param=param)
        if len(ids) >= self.context:
            raise ClientError(
                400,
                f"This model's maximum context length is {self.context} tokens. However, your prompt has {len(ids)} tokens. "
                "Please shorten it.",
                param=param,
                code="context_length_exceeded",
            )
        return ids

    def _requests(
        self,
        asked: Asked,
        served: Served,
        prompts: Sequence[list[int]],
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
        )
        count = (asked.n or 1) if isinstance(asked, Choices) else 1
        return [
            Request(
                ids,
                sampling,
                end_ids,
                asked.stop_words,
                number * count + sample,
                logprobs,
                served.adapter,
                not asked.stream,
            )
            for number, ids in enumerate(prompts)
            for sample in range(count)
        ]


def _check_turns(messages: Sequence[Message]) -> None:
    """ClientError for chats that no template of ours renders as trained."""
    if messages[-1].role != "user":
        raise ClientError(400, "The last message must be the user's.", param="messages")
    for number, message in enumerate(messages):
        if message.role == "system" and number:
            raise ClientError(400, "A system message must be the first message.", param="messages")
