"""What a conversation is, and what makes one invalid. File formats, templates and tokenizers are others' work."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import xxhash

from mftcoder.errors import DataError

Role = Literal["system", "user", "assistant", "text"]
_ROLES = frozenset(get_args(Role))
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "bot": "assistant",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""The spellings of a role in data files. `text` has none: it is the only message of a plain text record."""
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

    It is either a chat (an optional system message, then user and assistant messages, at least one from the assistant) or
    exactly one message of role `text`.
    """

    id: str
    task: str
    messages: tuple[Message, ...]
    origin: str

    @property
    def is_text(self) -> bool:
        """Whether this is a plain text, which is rendered unchanged and trained on every token."""
        return self.messages[0].role == "text"

    @property
    def size(self) -> int:
        """Characters of all contents."""
        return sum(len(message.content) for message in self.messages)

    @property
    def content_hash(self) -> int:
        """64 bits over roles and contents; equal for equal conversations in any file."""
        return content_hash(self.messages)

    def training_last_only(self) -> "Conversation":
        """The same conversation, trained on its last assistant turn at most."""
        last = max(index for index, message in enumerate(self.messages) if message.role in ("assistant", "text"))
        kept = tuple(
            replace(message, trained=message.trained and index == last) for index, message in enumerate(self.messages)
        )
        return replace(self, messages=kept)


def content_hash(messages: Sequence[Message]) -> int:
    """64-bit hash of roles and contents. Lengths are hashed too, so that two splits of one text do not collide."""
    return texts_hash((message.role, message.content) for message in messages)


def texts_hash(texts: Iterable[tuple[str, str]]) -> int:
    """64-bit hash of texts and of what each of them is."""
    digest = xxhash.xxh3_64()
    for kind, text in texts:
        content = text.encode()
        digest.update(f"{kind}:{len(content)}:".encode())
        digest.update(content)
    return digest.intdigest()


def find_problems(messages: Sequence[Message]) -> Iterator[str]:
    """Everything that makes these messages unusable, one sentence each; messages are numbered from 1."""
    if not messages:
        yield "it has no message"
        return
    for number, message in enumerate(messages, start=1):
        if message.role not in _ROLES:
            yield f"message {number}: role '{message.role}' is unknown. Known roles: {KNOWN_ROLES}."
        if not message.content.strip():
            yield f"message {number}: content is empty"
        if message.role == "system" and number > 1:
            yield f"message {number}: a system message must be the first message"
        if message.trained and message.role in ("system", "user"):
            yield f"message {number}: only assistant messages can be trained, not one of role '{message.role}'"
    roles = {message.role for message in messages}
    if not roles & {"assistant", "text"}:
        yield "it has no assistant message: nothing to train on"
    if "text" in roles and len(messages) > 1:
        yield "a plain text must be a single message"


def make_conversation(messages: Sequence[Message], *, id: str, task: str, origin: str) -> Conversation:
    """A valid Conversation without an empty system message. DataError lists every problem (without the origin)."""
    kept = tuple([message for message in messages if message.role != "system" or message.content.strip()])
    problems = list(find_problems(kept))
    if problems:
        raise DataError(*problems)
    return Conversation(id=id, task=task, messages=kept, origin=origin)
