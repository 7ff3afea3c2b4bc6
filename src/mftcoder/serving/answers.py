"""Texts -> the JSON of the OpenAI protocol: whole answers, and the chunks of a stream."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mftcoder import __version__
from mftcoder.generation.live_engine import Piece, WrittenToken

FINGERPRINT = f"mftcoder-{__version__}"
Bytes = Mapping[int, bytes]
"""Token id -> the bytes that it stands for; special tokens are not in it."""


@dataclass
class Text:
    """One choice of an answer, as far as it is known."""

    text: str = ""
    tokens: list[WrittenToken] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.tokens += piece.tokens
        self.finish_reason = piece.finish_reason


@dataclass(frozen=True)
class Header:
    """What every part of one answer says about it."""

    kind: str  # chat.completion or text_completion
    model: str
    id: str
    created: int

    @classmethod
    def new(cls, kind: str, model: str) -> "Header":
        opening = "chatcmpl" if kind.startswith("chat") else "cmpl"
        return cls(kind, model, f"{opening}-{uuid.uuid4().hex}", int(time.time()))

    def answer(self, choices: Sequence[Mapping[str, Any]], *, chunk: bool = False, **more: Any) -> dict[str, Any]:
        kind = f"{self.kind}.chunk" if chunk and self.kind == "chat.completion" else self.kind
        opening = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**opening, "system_fingerprint": FINGERPRINT, "choices": choices, **more}


def usage(prompt_tokens: int, generated: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": prompt_tokens + generated,
    }


def chat_choice(number: int, text: Text, noted: Bytes | None, *, delta: str | None = None) -> dict[str, Any]:
    """A choice of a chat. `delta` names the role in the first chunk, is empty in later ones, and None for a whole answer."""
    message: dict[str, Any] = {"content": text.text}
    if delta is None:
        message = {"role": "assistant", "content": text.text, "refusal": None}
    elif delta:
        message = {"role": delta, "content": text.text}
    elif text.finish_reason and not text.text:
        message = {}
    logprobs = None if noted is None else {"content": [_chat_token(token, noted) for token in text.tokens]}
    key = "message" if delta is None else "delta"
    return {"index": number, key: message, "logprobs": logprobs, "finish_reason": text.finish_reason}


def completion_choice(number: int, text: Text, noted: Bytes | None) -> dict[str, Any]:
    """A choice of a completion, whole or in a chunk."""
    logprobs = None
    if noted is not None:
        logprobs = {
            "tokens": [_name(token.choice.id, noted) for token in text.tokens],
            "token_logprobs": [token.choice.logprob for token in text.tokens],
            "top_logprobs": [
                {_name(number, noted): value for number, value in token.choice.top} for token in text.tokens
            ],
            "text_offset": [token.begin for token in text.tokens],
        }
    return {"index": number, "text": text.text, "logprobs": logprobs, "finish_reason": text.finish_reason}


def _chat_token(token: WrittenToken, noted: Bytes) -> dict[str, Any]:
    top = [_described(number, value, noted) for number, value in token.choice.top]
    return {**_described(token.choice.id, token.choice.logprob, noted), "top_logprobs": top}


def _described(number: int, value: float, noted: Bytes) -> dict[str, Any]:
    return {"token": _name(number, noted), "logprob": value, "bytes": list(noted.get(number, b""))}


def _name(number: int, noted: Bytes) -> str:
    """The token's text; for a part of a character its bytes, so that two such tokens have two names."""
    if number not in noted:
        return f"<{number}>"
    try:
        return noted[number].decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in noted[number])
