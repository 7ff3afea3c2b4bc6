"""Chat templates: the exact text that a model sees in training and in generation, and which of it is trained.

A template is either a table of markers or the tokenizer's own Jinja template (`jinja_template.py`). The content of a trained
assistant message and the EOS token after it are trained, nothing else.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mftcoder.config.data import DataConfig
from mftcoder.data.records.conversation import Conversation, Message
from mftcoder.data.rendering.jinja_template import JinjaTemplate
from mftcoder.data.rendering.tokenization import Segment, merge
from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import ConfigError, DataError
from mftcoder.registry import did_you_mean

TrainOn = Literal["assistant", "last_assistant", "all"]


@dataclass(frozen=True)
class MarkerTemplate:
    """The text around the contents: `system` + content + `after_system`, and so on. An assistant turn ends with `end`."""

    system: str
    user: str
    assistant: str
    end: str
    after_system: str = ""
    after_user: str = ""
    after_end: str = ""

    def render_chat(self, messages: Sequence[Message]) -> list[Segment]:
        return merge(segment for message in messages for segment in self._turn(message))

    def _turn(self, message: Message) -> Iterator[Segment]:
        if message.role == "assistant":
            yield Segment(self.assistant, False)
            yield Segment(message.content + self.end, message.trained)
            yield Segment(self.after_end, False)
            return
        before, after = (self.system, self.after_system) if message.role == "system" else (self.user, self.after_user)
        yield Segment(before + message.content + after, False)

    def render_prompt(self, messages: Sequence[Message]) -> str:
        """The chat so far and the beginning of the assistant's next turn: the prompt of a generation."""
        return "".join(segment.text for segment in self.render_chat(messages)) + self.assistant

    def as_jinja(self) -> str:
        """The same template in Jinja, for an exported tokenizer."""
        turns = {
            "system": (self.system, self.after_system),
            "user": (self.user, self.after_user),
            "assistant": (self.assistant, self.end + self.after_end),
        }
        branches = "".join(
            f"{{%- {'if' if role == 'system' else 'elif'} message['role'] == '{role}' -%}}"
            f"{{{{- {_quoted(before)} + message['content'] + {_quoted(after)} -}}}}"
            for role, (before, after) in turns.items()
        )
        opening = f"{{%- if add_generation_prompt -%}}{{{{- {_quoted(self.assistant)} -}}}}{{%- endif -%}}"
        return f"{{%- for message in messages -%}}{branches}{{%- endif -%}}{{%- endfor -%}}{opening}"


Template = MarkerTemplate | JinjaTemplate
"""Renders a chat as text. `end` is the text that ends an assistant turn: generation stops there."""


def _quoted(text: str) -> str:
    escaped = (
        text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    )
    return f"'{escaped}'"


def _mftcoder(tokenizer: Tokenizer) -> MarkerTemplate:
    end = tokenizer.eos_token
    return MarkerTemplate("<s>system\n", "<s>human\n", "<s>bot\n", end, after_end="\n")


def _mftcoder_v03(tokenizer: Tokenizer) -> MarkerTemplate:
    """The template of the published versions 0.3 to 0.5: a line break after every content, also after an answer."""
    return _lines("<s>system\n", "<s>human\n", "<s>bot\n", tokenizer.eos_token, "\n")


def _lines(system: str, user: str, assistant: str, eos: str, after: str) -> MarkerTemplate:
    """Markers, with `after` after each content and after the EOS token."""
    return MarkerTemplate(system, user, assistant, after + eos, after_system=after, after_user=after, after_end=after)


def _codefuse_codellama(tokenizer: Tokenizer) -> MarkerTemplate:
    opening = "<|role_start|>{}<|role_end|>".format
    return MarkerTemplate(opening("system"), opening("human"), opening("bot"), "</s>")


def _chatml(tokenizer: Tokenizer) -> MarkerTemplate:
    opening, end = "<|im_start|>{}\n".format, "<|im_end|>"
    return MarkerTemplate(
        opening("system"), opening("user"), opening("assistant"), end, f"{end}\n", f"{end}\n", after_end="\n"
    )


TEMPLATES = {
    "mftcoder": _mftcoder,
    "mftcoder-v0.3": _mftcoder_v03,
    "codefuse-codellama": _codefuse_codellama,
    "chatml": _chatml,
}


def load_template(config: DataConfig, tokenizer: Tokenizer) -> Template:
    """The template of a config: its role_markers, a row of TEMPLATES, or the tokenizer's own (`auto`)."""
    if config.role_markers is not None:
        markers = config.role_markers
        return _lines(markers.system, markers.user, markers.assistant, tokenizer.eos_token, markers.after_content)
    if config.chat_template != "auto":
        if config.chat_template not in TEMPLATES:
            known = did_you_mean(config.chat_template, ["auto", *TEMPLATES])
            raise ConfigError(f"data.chat_template: unknown template '{config.chat_template}'.{known}")
        return TEMPLATES[config.chat_template](tokenizer)
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"data.chat_template: the tokenizer of {tokenizer.name} has no template of its own. "
            f"Choose one: {', '.join(TEMPLATES)}, or give data.role_markers."
        )
    return JinjaTemplate(
        tokenizer.chat_template,
        special_tokens=tokenizer.named_tokens,
        end_tokens=tokenizer.special_tokens - {tokenizer.bos_token} | {tokenizer.eos_token},
        eos=tokenizer.eos_token,
    )


def render_next(template: Template, messages: Sequence[Message]) -> list[Segment]:
    """The prompt of the assistant's next turn, in the segments in which training encodes the same chat.

    Answers of the chat so far are segments of their own, so that no token crosses their borders. A template that rewrites
    contents cannot be trained on, and has no such borders.
    """
    prompt = template.render_prompt(messages)
    try:
        chat = template.render_chat([replace(message, trained=message.role == "assistant") for message in messages])
    except DataError:
        return [Segment(prompt, False)]
    done = "".join(segment.text for segment in chat)
    if not prompt.startswith(done):
        return [Segment(prompt, False)]
    return merge([*chat, Segment(prompt[len(done) :], False)])


def text_after_answer(template: Template, tokenizer: Tokenizer) -> str:
    """What a model is trained to write between an answer and the token that ends it: a line break in some templates, else nothing."""
    try:
        chat = template.render_chat([Message("user", "q", False), Message("assistant", "a", True)])
    except DataError:
        return ""
    rest = "".join(segment.text for segment in chat if segment.trained).rpartition("a")[2]
    places = [place for token in tokenizer.special_tokens if (place := rest.find(token)) >= 0]
    return rest[: min(places)] if places else ""


def render(
    conversation: Conversation, template: Template, tokenizer: Tokenizer, train_on: TrainOn = "assistant"
) -> list[Segment]:
    """The segments of one conversation, neighbours of equal `trained` joined; DataError if trained text cannot be located.

    A plain text is rendered as BOS (if the tokenizer adds one), text and EOS; text and EOS are trained.
    """
    if conversation.is_text:
        text = conversation.messages[0].content
        opening = tokenizer.bos_token if tokenizer.adds_bos else ""
        return merge([Segment(opening, False), Segment(text + tokenizer.eos_token, True)])
    if train_on == "last_assistant":
        conversation = conversation.training_last_only()
    segments = template.render_chat(conversation.messages)
    return merge(Segment(segment.text, True) for segment in segments) if train_on == "all" else segments
