"""What each kind of task makes of its records: a line of a file -> an example -> tokens that fit into rows."""

from collections.abc import Sequence
from typing import Any, Protocol

from mftcoder.config.data import DataConfig
from mftcoder.config.kinds import GrpoKind, KtoKind, PreferenceKind, PretrainKind, TaskKind
from mftcoder.data.records.conversation import Conversation
from mftcoder.data.records.formats import parse_object, read_record
from mftcoder.data.rendering.documents import Document, Documents, TokenDocument
from mftcoder.data.rendering.groups import Group, Groups
from mftcoder.data.rendering.pairs import Pair, Pairs
from mftcoder.data.rendering.templates import Template, load_template, render
from mftcoder.data.rendering.tokenization import Fitted, Segment, encode_segments, fit
from mftcoder.data.tokenizers.tokenizer import Tokenizer
from mftcoder.errors import DataError

Example = Conversation | Document | TokenDocument | Group | Pair
"""One valid record: its `size` in characters bounds the memory of a batch, its `content_hash` is equal for equal content in any file."""


class Records(Protocol):
    """Reads and tokenizes the records of one kind of task."""

    def read(self, line: bytes, *, format: str, task: str, origin: str) -> Any:
        """The Example on a line; DataError with all its problems."""

    def render(self, example: Any) -> Any:
        """The example as text; DataError if it cannot be rendered."""

    def fit(self, rendered: Sequence[Any]) -> list[Fitted]:
        """The tokens of each rendered example, in pieces that fit into rows."""


class Conversations:
    """Chats and plain texts, for tasks of kind sft."""

    def __init__(self, tokenizer: Tokenizer, config: DataConfig):
        self.tokenizer, self.config = tokenizer, config
        self.template = load_template(config, tokenizer)

    def read(self, line: bytes, *, format: str, task: str, origin: str) -> Conversation:
        """The conversation on a line. DataError for an answer that is labelled as undesirable."""
        conversation = read_record(line, format=format, task=task, origin=origin)
        if b'"label"' in line and parse_object(line).get("label") is False:
            raise DataError(
                "'label' is false: a bad answer would be trained as a good one. Set kind: kto, or leave it out"
            )
        return conversation

    def render(self, conversation: Conversation) -> list[Segment]:
        return render(conversation, self.template, self.tokenizer, self.config.train_on)

    def fit(self, rendered: Sequence[list[Segment]]) -> list[Fitted]:
        """Cut to max_length as data.over_length says."""
        tokens = encode_segments(self.tokenizer, rendered)
        return [fit(one, self.config.max_length, self.config.over_length) for one in tokens]


def records_of(kind: TaskKind, tokenizer: Tokenizer, config: DataConfig) -> Records:
    """The reader of this kind. ModelError or ConfigError if this tokenizer cannot have it."""
    if isinstance(kind, PretrainKind):
        return Documents(kind, tokenizer, config)
    if isinstance(kind, PreferenceKind):
        return Pairs(tokenizer, config, labelled=isinstance(kind, KtoKind))
    if isinstance(kind, GrpoKind):
        return Groups(tokenizer, config)
    return Conversations(tokenizer, config)


def template_of(kinds: Sequence[TaskKind], tokenizer: Tokenizer, config: DataConfig) -> Template | None:
    """The template that shapes the samples of these tasks; None if all of them hold documents, which have none."""
    return None if all(isinstance(kind, PretrainKind) for kind in kinds) else load_template(config, tokenizer)
