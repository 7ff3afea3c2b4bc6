"""What an example is, and what makes one invalid.

Goes in: messages that a dialect found in a record. Comes out: a Conversation that every template can render, or a DataError
that lists all that is wrong with it. Knows no file format, no template and no tokenizer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import xxhash

from mftcoder.errors import DataError

Role = Literal["system", "user", "assistant", "text"]
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "bot": "assistant",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""The spellings of a role in data files. `text` has none: it is the one message of a plain text record."""
KNOWN_ROLES = "system, human/user, bot/assistant"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `trained` may be true for assistant turns (and for the text of a plain text record) only."""

    role: Role
    content: str
    trained: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """One valid example of a task. `origin` is `path:line`; `id` is the record's own id, or empty.

    Either a chat (an optional system message, then at least one user or assistant message, at least one of them from the
    assistant) or exactly one message of role `text`.
    """

    id: str
    task: str
    messages: tuple[Message, ...]
    origin: str

    @property
    def is_text(self) -> bool:
        """Whether this is a plain text, rendered as it stands and trained on every token."""
        return self.messages[0].role == "text"

    @property
    def content_hash(self) -> int:
        """64 bits over roles and contents; equal for equal conversations wherever they stand."""
        return content_hash(self.messages)

    def training_last_only(self) -> "Conversation":
        """The same conversation with no assistant turn trained but the last one (if that one is)."""
        last = max(index for index, message in enumerate(self.messages) if message.role in ("assistant", "text"))
        kept = tuple(
            replace(message, trained=message.trained and index == last) for index, message in enumerate(self.messages)
        )
        return replace(self, messages=kept)


def content_hash(messages: Sequence[Message]) -> int:
    """64-bit hash of roles and contents; lengths are hashed too, so no two splits of a text collide."""
    digest = xxhash.xxh3_64()
    for message in messages:
        content = message.content.encode()
        digest.update(f"{message.role}:{len(content)}:".encode())
        digest.update(content)
    return digest.intdigest()


def find_problems(messages: Sequence[Message]) -> Iterator[str]:
    """Everything that makes these messages unusable, one sentence each; messages are numbered from 1."""
    if not messages:
        yield "there is no message in it"
        return
    for number, message in enumerate(messages, start=1):
        if message.role not in get_args(Role):
            yield f"message {number}: role '{message.role}' is unknown. Known roles: {KNOWN_ROLES}."
        if not message.content.strip():
            yield f"message {number}: content is empty"
        if message.role == "system" and number > 1:
            yield f"message {number}: a system message stands first or not at all"
        if message.trained and message.role in ("system", "user"):
            yield f"message {number}: only assistant messages can be trained, not one of role '{message.role}'"
    roles = {message.role for message in messages}
    if not roles & {"assistant", "text"}:
        yield "there is no assistant message: nothing to train on"
    if "text" in roles and len(messages) > 1:
        yield "a plain text is one message"


def make_conversation(messages: Sequence[Message], *, id: str, task: str, origin: str) -> Conversation:
    """A valid Conversation; an empty system message is left out. DataError lists every problem (without the origin)."""
    kept = tuple(message for message in messages if message.role != "system" or message.content.strip())
    problems = list(find_problems(kept))
    if problems:
        raise DataError(*problems)
    return Conversation(id=id, task=task, messages=kept, origin=origin)
