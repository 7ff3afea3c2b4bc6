"""The tokenizer's own chat template: rendered as the transformers library renders it, with exact trained spans.

For each sequence of roles, the template is rendered once with marks in place of the contents. The text between the marks is
fixed. Each conversation is then rendered with its contents and matched against the fixed text. If every character matches, the
spans are exact. Otherwise the template rewrites contents, and the conversation is refused. A template with `{% generation %}`
states by itself what is trained.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mftcoder.data.records.conversation import Message
from mftcoder.data.rendering.tokenization import Segment, merge
from mftcoder.errors import ConfigError, DataError

# Private-use characters only: templates do not strip or replace them, and real text does not hold these sequences.
_CONTENT_PATTERN = re.compile("\ue0f0([\ue000-\ue00f]+)\ue0f1")
_OPEN, _CLOSE = "\ue0f3\ue0f4(", ")\ue0f4\ue0f3"
_REMEDY = "Use data.chat_template: chatml, or mark the trained text with {% generation %} in the template."


def _mark(index: int) -> str:
    return "\ue0f0" + "".join(chr(0xE000 + int(digit, 16)) for digit in f"{index:x}") + "\ue0f1"


def _index(mark: str) -> int:
    return int("".join(f"{ord(digit) - 0xE000:x}" for digit in mark), 16)


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: renders its body, between marks if `mark_generation` is set."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark", [nodes.ContextReference()]), [], [], body).set_lineno(line)

    def _mark(self, context: Any, caller: Any) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}" if context.get("mark_generation") else str(caller())


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=lambda format: datetime.now().strftime(format)
    )
    return environment


@dataclass(frozen=True)
class _Skeleton:
    """The text that a template writes around n contents: `fixed[0] content[order[0]] fixed[1] ... fixed[n]`.

    `lead[m]` characters before the content of assistant message m, and `tail[m]` after it, are trained too.
    """

    fixed: tuple[str, ...]
    order: tuple[int, ...]
    lead: dict[int, int]
    tail: dict[int, int]


@dataclass
class JinjaTemplate:
    """A Jinja chat template, the special tokens that it may use, and the tokens that may end a turn."""

    source: str
    special_tokens: Mapping[str, str]
    end_tokens: frozenset[str]
    eos: str
    _skeletons: dict[tuple[str, ...], _Skeleton] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        try:
            self._template = _environment().from_string(self.source)
        except jinja2.TemplateError as error:
            raise ConfigError(f"data.chat_template: the tokenizer's own template is broken: {error}") from error
        self._has_generation = bool(re.search(r"\{%-?\s*generation\s*-?%\}", self.source))

    @property
    def end(self) -> str:
        """The text that ends an assistant turn, as the template writes it."""
        chat = [Message("user", "q", False), Message("assistant", "a", True)]
        trained = [segment.text for segment in self.render_chat(chat) if segment.trained]
        return trained[-1].rpartition("a")[2].strip() if trained else self.eos

    def as_jinja(self) -> str:
        return self.source

    def render_prompt(self, messages: Sequence[Message]) -> str:
        """The chat so far, followed by the template's generation prompt."""
        return self._render([(message.role, message.content) for message in messages], add_generation_prompt=True)

    def render_chat(self, messages: Sequence[Message]) -> list[Segment]:
        """The segments of the chat; DataError if the template refuses it, or rewrites contents so that spans are unknown."""
        if self._has_generation:
            return self._render_by_tags(messages)
        text = self._render([(message.role, message.content) for message in messages])
        roles = tuple(message.role for message in messages)
        if roles not in self._skeletons:
            self._skeletons[roles] = self._find_skeleton(roles)
        return merge(_match(text, self._skeletons[roles], messages))

    def _render(self, turns: Sequence[tuple[str, str]], *, add_generation_prompt: bool = False, **extra: Any) -> str:
        chat = [{"role": role, "content": content} for role, content in turns]
        try:
            return self._template.render(
                messages=chat,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
                **extra,
            )
        except jinja2.TemplateError as error:
            raise DataError(f"the tokenizer's template refuses this conversation: {error}") from error
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, RecursionError) as error:
            raise DataError(f"the tokenizer's template fails on this conversation: {error}") from error

    def _render_by_tags(self, messages: Sequence[Message]) -> list[Segment]:
        text = self._render([(message.role, message.content) for message in messages], mark_generation=True)
        answers = [message for message in messages if message.role == "assistant"]
        pieces = re.split(f"{re.escape(_OPEN)}|{re.escape(_CLOSE)}", text)
        if len(pieces) != 2 * len(answers) + 1:
            found = (len(pieces) - 1) // 2
            raise DataError(f"the tokenizer's template marks {found} generations for {len(answers)} assistant messages")
        trained = [index % 2 == 1 and answers[index // 2].trained for index in range(len(pieces))]
        return merge(Segment(piece, flag) for piece, flag in zip(pieces, trained, strict=True))

    def _find_skeleton(self, roles: tuple[str, ...]) -> _Skeleton:
        marked = [(role, _mark(index)) for index, role in enumerate(roles)]
        pieces = _CONTENT_PATTERN.split(self._render(marked))
        fixed, order = tuple(pieces[::2]), tuple(map(_index, pieces[1::2]))
        lost = [index + 1 for index, role in enumerate(roles) if role == "assistant" and order.count(index) != 1]
        if lost:
            raise DataError(
                f"message {lost[0]}: the tokenizer's template does not write its content exactly once. {_REMEDY}"
            )
        lead, tail = {}, {}
        for slot, index in enumerate(order):
            if roles[index] == "assistant":
                prompt = _CONTENT_PATTERN.split(self._render(marked[:index], add_generation_prompt=True))
                lead[index] = _beyond_prompt(prompt, pieces[: 2 * slot + 1])
                tail[index] = self._end_length(fixed[slot + 1], index)
        return _Skeleton(fixed, order, lead, tail)

    def _end_length(self, following: str, index: int) -> int:
        """Characters of the fixed text after an answer that end it: whitespace, if any, and a special token."""
        rest = following.lstrip()
        ends = [token for token in self.end_tokens if rest.startswith(token)]
        if not ends:
            raise DataError(f"message {index + 1}: the tokenizer's template writes no EOS token after it. {_REMEDY}")
        return len(following) - len(rest) + max(map(len, ends))


def _beyond_prompt(prompt: list[str], pieces: list[str]) -> int:
    """Characters of the fixed text before an answer that are not in the generation prompt: the model has to write them."""
    if len(prompt) != len(pieces) or prompt[:-1] != pieces[:-1] or not pieces[-1].startswith(prompt[-1]):
        return 0
    return len(pieces[-1]) - len(prompt[-1])


def _match(text: str, skeleton: _Skeleton, messages: Sequence[Message]) -> list[Segment]:
    """Cut `text` along the skeleton's fixed texts; DataError at the first content that the template changed."""
    segments: list[Segment] = []
    position, cut = 0, 0
    if not text.startswith(skeleton.fixed[0]):
        raise DataError(f"the tokenizer's template writes a different beginning for this conversation. {_REMEDY}")
    for slot, index in enumerate(skeleton.order):
        position += len(skeleton.fixed[slot])
        following = skeleton.fixed[slot + 1]
        last = slot + 1 == len(skeleton.order)
        written = _written_length(text, position, messages[index].content, following, last)
        if written is None:
            raise DataError(f"message {index + 1}: the tokenizer's template rewrites its content. {_REMEDY}")
        if messages[index].trained:
            start, end = position - skeleton.lead[index], position + written + skeleton.tail[index]
            segments += [Segment(text[cut:start], False), Segment(text[start:end], True)]
            cut = end
        position += written
    return [*segments, Segment(text[cut:], False)]


def _written_length(text: str, position: int, content: str, following: str, last: bool) -> int | None:
    """Length of the content at `position`, whole or stripped of whitespace, if `following` comes right after it."""
    for candidate in (content, content.strip(), content.lstrip(), content.rstrip()):
        end = position + len(candidate)
        fits = text.startswith(candidate, position) and text.startswith(following, end)
        if fits and (not last or end + len(following) == len(text)):
            return len(candidate)
    return None
