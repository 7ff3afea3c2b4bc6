"""One request to an OpenAI-compatible endpoint: what is sent, what counts as an answer, and which failures are worth another try.

Retries, pace, budget and journal are left to teacher.py.
"""

import asyncio
import email.utils
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import orjson
from pydantic import Field, field_validator

from mftcoder.config.section import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Section
from mftcoder.errors import EndpointError, reason

if TYPE_CHECKING:
    import httpx

MAX_ANSWER_BYTES = 16 << 20
DEFAULT_KEY_ENV = "OPENAI_API_KEY"
_PATH = "/chat/completions"
_COMPLETIONS, _MODELS = "/completions", "/models"
_RETRIED = frozenset({408, 409, 425, 429})  # beside 5xx
_REFUSED = frozenset({400, 413, 422})  # this request; another one may be fine
_THOUGHTS = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)

Messages = Sequence[Mapping[str, str]]


class EndpointConfig(Section):
    """A model behind an OpenAI-compatible endpoint, and how it is asked."""

    url: str
    """Base URL, such as http://localhost:8000/v1."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name at the endpoint."""
    api_key_env: str | None = None
    """Environment variable with the API key; by default OPENAI_API_KEY, if it is set. The key is written nowhere."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    """0 is greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling probability."""
    max_tokens: PositiveInt = 2048
    """Most tokens of an answer. An answer that reaches it was cut, and is not used."""
    extra_body: dict[str, Any] = {}
    """More fields of a request's body. null removes one: {max_tokens: null, max_completion_tokens: 2048, seed: null}."""
    concurrency: PositiveInt = 8
    """Requests at the same time."""
    requests_per_minute: PositiveFloat | None = None
    """Most requests sent in a minute; default no limit. What the endpoint itself says (429, Retry-After) is followed in any case."""
    timeout_seconds: PositiveFloat = 120
    """Seconds after which a request counts as failed."""
    retries: NonNegativeInt = 5
    """Further attempts for a request that failed."""
    backoff_seconds: PositiveFloat = 1
    """Wait before the first further attempt; it doubles each time, up to 60 seconds."""
    patience_seconds: PositiveFloat = 600
    """Longest wait that an endpoint may ask for by Retry-After; a longer one ends the command."""
    allow_model_change: bool = False
    """Go on, and count it, if the endpoint answers with another model than before. By default this ends the command."""
    price_in: NonNegativeFloat | None = None
    """Price of a million tokens of questions."""
    price_out: NonNegativeFloat | None = None
    """Price of a million tokens of answers."""

    @field_validator("url")
    @classmethod
    def _is_a_base_url(cls, url: str) -> str:
        try:
            parts = urlsplit(url.strip())
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(f"'{url[:60]}' is not a URL such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("give the URL alone: a key or a query in it would be written into files. Use api_key_env")
        path = parts.path.rstrip("/").removesuffix(_PATH) or "/v1"
        return urlunsplit((parts.scheme, parts.netloc, path, "", ""))

    @property
    def most_completion_tokens(self) -> int | None:
        """Tokens of an answer at most; None if `extra_body` took every limit away."""
        body = self.body(())
        limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if isinstance(body.get(name), int)]
        return min(limits, default=None)

    def body(self, messages: Messages) -> dict[str, Any]:
        """The body of a request, but for its seed."""
        plain = {
            "model": self.model,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "max_tokens": self.max_tokens,
        }
        fields = {**plain, **self.extra_body, "messages": [dict(message) for message in messages]}
        return {name: value for name, value in fields.items() if value is not None}

    def api_key(self) -> str | None:
        """The key from the environment. EndpointError if the variable that was asked for is not set."""
        key = os.environ.get(self.api_key_env or DEFAULT_KEY_ENV, "").strip()
        if self.api_key_env and not key:
            raise EndpointError(f"api_key_env: the environment variable {self.api_key_env} is not set")
        return key or None


@dataclass(frozen=True)
class Usage:
    """Tokens of one request, or of several."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


@dataclass(frozen=True)
class Reply:
    """An answer. `model` is the name that the endpoint gives itself; `usage` is None if the endpoint does not say it."""

    text: str
    finish: str
    model: str
    usage: Usage | None

    @property
    def is_cut(self) -> bool:
        """Whether the answer ended before the model did: at the token limit, or by a content filter."""
        return self.finish in ("length", "content_filter")


class AttemptError(Exception):
    """One attempt that brought no answer. `usage` counts what it cost nevertheless."""

    def __init__(self, problem: str, *, usage: Usage | None = None, retry_after: float | None = None):
        super().__init__(problem)
        self.problem, self.usage, self.retry_after = problem, usage, retry_after


class EmptyAnswerError(AttemptError):
    """The endpoint answered, with nothing."""


class LateError(AttemptError):
    """There was no whole answer in time."""


class RefusedError(AttemptError):
    """The endpoint does not take this request: another attempt would be refused too."""


class Endpoint:
    """The HTTP side of an endpoint; an async context manager."""

    def __init__(self, config: EndpointConfig):
        self.config = config
        self._key = config.api_key()
        self._client = _client(config)

    async def __aenter__(self) -> "Endpoint":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def chat(self, body: Mapping[str, Any]) -> Reply:
        """One attempt. AttemptError or RefusedError if it brings no answer; EndpointError if no request can succeed."""
        return read_reply(await self._content("POST", _PATH, body))

    async def complete(self, body: Mapping[str, Any]) -> Reply:
        """One attempt to go on from `prompt`. The text may be empty; errors are those of `chat`."""
        return _read(await self._content("POST", _COMPLETIONS, body), lambda choice: choice["text"])

    async def models(self) -> list[str]:
        """The names that can be asked for. Errors are those of `chat`."""
        content = await self._content("GET", _MODELS)
        try:
            return [str(row["id"]) for row in orjson.loads(content)["data"]]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise AttemptError("the list of models cannot be read") from None

    async def _content(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """The body of a good response."""
        import httpx

        try:
            async with asyncio.timeout(self.config.timeout_seconds):
                status, headers, content = await self._send(method, self.config.url + path, body)
        except (TimeoutError, httpx.TimeoutException):
            raise LateError(f"no answer after {self.config.timeout_seconds:g} s") from None
        except httpx.HTTPError as error:
            raise AttemptError(f"the connection failed: {reason(error)}") from None
        if status != 200:
            raise self._failure(status, headers, content)
        return content

    async def _send(
        self, method: str, url: str, body: Mapping[str, Any] | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        sent = None if body is None else orjson.dumps(body)
        async with self._client.stream(method, url, content=sent, headers=headers) as response:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise AttemptError(f"the answer is longer than {MAX_ANSWER_BYTES >> 20} MB")
            return response.status_code, response.headers, self._without_key(bytes(content))

    def _without_key(self, content: bytes) -> bytes:
        """An endpoint may quote the key, in the message of an error for example."""
        return content.replace(self._key.encode(), b"(the API key)") if self._key else content

    def _failure(self, status: int, headers: Mapping[str, str], content: bytes) -> Exception:
        said, code = _error_in(content)
        problem = f"HTTP {status}{f': {said}' if said else ''}"
        if code == "insufficient_quota":
            return EndpointError(f"{self.config.url}: {problem}")
        if status in _RETRIED or status >= 500:
            return AttemptError(problem, retry_after=retry_after(headers.get("retry-after")))
        if status in _REFUSED:
            return RefusedError(problem)
        return EndpointError(
            f"{self.config.url}: {problem}. Check the URL, the model's name ({self.config.model}) and the API key"
        )


def _client(config: EndpointConfig) -> "httpx.AsyncClient":
    try:
        import httpx
    except ImportError as error:
        raise EndpointError(
            "an endpoint needs httpx, which is not installed. Install it with: pip install 'mftcoder[curate]'"
        ) from error
    limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
    return httpx.AsyncClient(timeout=config.timeout_seconds, limits=limits)


def read_reply(content: bytes) -> Reply:
    """The answer in a response's body; AttemptError for one that is broken or empty."""
    reply = _read(content, lambda choice: choice["message"]["content"])
    # A server may leave the thoughts of a reasoning model in its answer.
    thoughts = _THOUGHTS.match(reply.text)
    text = reply.text[thoughts.end() :] if thoughts else reply.text
    if not text.strip():
        raise EmptyAnswerError("the answer is empty", usage=reply.usage)
    return replace(reply, text=text)


def _read(content: bytes, text_of: Callable[[Any], Any]) -> Reply:
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise AttemptError("the answer is not JSON") from error
    usage = _usage(value)
    try:
        choice = value["choices"][0]
        text = text_of(choice) or ""
        finish, model = str(choice.get("finish_reason") or ""), str(value.get("model") or "")
    except (KeyError, IndexError, TypeError, AttributeError):
        said, _ = _error_in(content)
        raise AttemptError(f"the answer has no message{f': {said}' if said else ''}", usage=usage) from None
    if not isinstance(text, str):
        raise AttemptError("the answer's message is not a text", usage=usage)
    return Reply(text, finish, model, usage)


def _usage(value: Any) -> Usage | None:
    found = value.get("usage") if isinstance(value, dict) else None
    counts = [found.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(found, dict) else [None]
    if not all(type(count) is int and count >= 0 for count in counts):
        return None
    return Usage(*counts)


def _error_in(content: bytes) -> tuple[str, str]:
    """What the body of a failure says, on one line, and its code."""
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError:
        return reason(Exception(content[:300].decode(errors="replace"))) if content.strip() else "", ""
    error = value.get("error", value.get("detail", value.get("message"))) if isinstance(value, dict) else value
    if isinstance(error, dict):
        return reason(Exception(str(error.get("message") or error))), str(error.get("code") or error.get("type") or "")
    return (reason(Exception(str(error))) if error else ""), ""


def retry_after(header: str | None) -> float | None:
    """Seconds to wait by the header Retry-After, which holds seconds or a date; None if it holds neither."""
    if not header:
        return None
    if re.fullmatch(r"\d+(\.\d+)?", header.strip()):
        return float(header)
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except (TypeError, ValueError):
        return None
    return max(0.0, moment.timestamp() - time.time())
