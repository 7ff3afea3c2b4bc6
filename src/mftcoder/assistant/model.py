"""The model that is asked: behind an OpenAI-compatible endpoint, or any object with the same two methods."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from mftcoder.curation.teacher.endpoint import (
    AttemptError,
    EmptyAnswerError,
    Endpoint,
    EndpointConfig,
    LateError,
    Messages,
    RefusedError,
    Reply,
)
from mftcoder.errors import EndpointError

DEFAULT_URL = "http://127.0.0.1:8000/v1"
MAX_TOKENS = 1024
LONGEST_WAIT = 60.0


class Written(Protocol):
    """What a model wrote, and whether a limit cut it."""

    @property
    def text(self) -> str:
        """The text, perhaps empty."""

    @property
    def is_cut(self) -> bool:
        """Whether it ended before the model did."""


class Model(Protocol):
    """What the verbs need of a model. Nothing that it returns is trusted."""

    def ask(self, messages: Messages, *, seed: int = 0) -> Written:
        """The answer to a chat."""

    def go_on(self, before: str, after: str, *, stop: tuple[str, ...], max_tokens: int) -> Written | None:
        """The text at a gap; None if the model has no completions, so that a chat must do."""


@dataclass
class EndpointModel:
    """A model behind an endpoint. Failures that may pass are tried again."""

    config: EndpointConfig
    _has_suffix: bool = field(default=True, init=False)
    _has_completions: bool = field(default=True, init=False)

    def ask(self, messages: Messages, *, seed: int = 0) -> Reply:
        """The answer to a chat. EndpointError if there is none."""
        body = {**self.config.body(messages), "seed": seed}
        return asyncio.run(self._answered(lambda endpoint: endpoint.chat(body)))

    def go_on(self, before: str, after: str, *, stop: tuple[str, ...], max_tokens: int) -> Reply | None:
        """The text at a gap: by fill in the middle where the endpoint has it, else from the text before the gap."""
        plain = {"model": self.config.model, "prompt": before, "temperature": 0, "max_tokens": max_tokens}
        body: dict[str, Any] = {**plain, "stop": list(stop)} if stop else plain
        if self._has_suffix and after.strip():
            found = self._completed({**body, "suffix": after})
            if found is not None:
                return found
            self._has_suffix = False
        return self._completed(body) if self._has_completions else None

    def _completed(self, body: Mapping[str, Any]) -> Reply | None:
        try:
            return asyncio.run(self._answered(lambda endpoint: endpoint.complete(body), refusals=True))
        except _NotOfferedError as error:
            if "suffix" not in body:
                self._has_completions = False
            if "context" in str(error):
                raise EndpointError(f"{self.config.url}: {error}") from error
            return None

    async def _answered(self, send: Callable[[Endpoint], Awaitable[Reply]], *, refusals: bool = False) -> Reply:
        async with Endpoint(self.config) as endpoint:
            for attempt in range(self.config.retries + 1):
                try:
                    return await send(endpoint)
                except EmptyAnswerError:
                    return Reply("", "stop", self.config.model, None)
                except RefusedError as error:
                    if refusals:
                        raise _NotOfferedError(error.problem) from error
                    raise EndpointError(f"{self.config.url}: {error.problem}") from error
                except LateError as error:  # it waited long enough
                    raise EndpointError(f"{self.config.url}: {error.problem}. --timeout allows more") from error
                except AttemptError as error:
                    last = error
                except EndpointError as error:
                    if refusals and "HTTP 404" in str(error):
                        raise _NotOfferedError(str(error)) from error
                    raise
                if attempt < self.config.retries:
                    usual = self.config.backoff_seconds * 2**attempt
                    await asyncio.sleep(min(LONGEST_WAIT, usual if last.retry_after is None else last.retry_after))
        raise EndpointError(f"{self.config.url}: {last.problem}")


class _NotOfferedError(Exception):
    """The endpoint does not take this kind of request."""


def open_endpoint(
    url: str = DEFAULT_URL,
    model: str | None = None,
    *,
    api_key_env: str | None = None,
    temperature: float = 0.2,
    max_tokens: int = MAX_TOKENS,
    timeout_seconds: float = 300,
) -> EndpointModel:
    """The model at an endpoint; without a name the first one that the endpoint lists. EndpointError if it does not answer."""
    options: dict[str, Any] = {
        "api_key_env": api_key_env,
        "temperature": temperature,
        "max_tokens": max_tokens,
        "timeout_seconds": timeout_seconds,
        "retries": 3,
    }
    try:
        config = EndpointConfig(url=url, model=model or "?", **options)
    except ValueError as error:
        problems = error.errors() if hasattr(error, "errors") else []
        said = str(problems[0]["msg"] if problems else error).removeprefix("Value error, ")
        raise EndpointError(f"--url {url[:100]}: {said}") from error
    if model is None:
        name = asyncio.run(_first_model(config))
        config = EndpointConfig(url=url, model=name, **options)
    return EndpointModel(config)


async def _first_model(config: EndpointConfig) -> str:
    async with Endpoint(config) as endpoint:
        try:
            names = await endpoint.models()
        except AttemptError as error:
            raise EndpointError(
                f"{config.url}: {error.problem}. Start one with `mft serve MODEL`, name another with --url, or give --model FOLDER"
            ) from error
    if not names:
        raise EndpointError(f"{config.url}: lists no model. Name one with --model-name")
    return names[0]
