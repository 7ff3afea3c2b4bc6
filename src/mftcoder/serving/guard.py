"""Who may ask, and how much may be sent: API keys and the size of a body, before anything is read as JSON."""

import hmac
from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mftcoder.serving.metrics import Metrics

OPEN_PATHS = frozenset({"/health"})
"""What answers without a key: a load balancer has none."""
TOO_LARGE = "The request is larger than {:,} bytes."


def error_response(status: int, message: str, *, param: str | None = None, code: str | None = None) -> JSONResponse:
    """An error as the OpenAI protocol writes it."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    headers = {"Retry-After": "1"} if status == 429 else {"WWW-Authenticate": "Bearer"} if status == 401 else None
    body: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": body}, status, headers)


class Guard:
    """Refuses requests without a key (401) and bodies that are too large (413), and counts all requests."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Sequence[str],
        most_bytes: int,
        metrics: Metrics,
        open_paths: frozenset[str] = OPEN_PATHS,
    ):
        self.app, self.most_bytes, self.metrics, self.open_paths = app, most_bytes, metrics, open_paths
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        counted = self._counted(scope, send)
        if not self._may_ask(scope["path"], headers):
            message = "The API key is missing or wrong. Send it as Authorization: Bearer KEY."
            await error_response(401, message, code="invalid_api_key")(scope, receive, counted)
            return
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self.most_bytes:
            await self._too_large()(scope, receive, counted)
            return
        await self.app(scope, self._limited(receive), counted)

    def _may_ask(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if not self._keys or path in self.open_paths:
            return True
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # All keys are compared, so that the time of an answer says nothing about them.
        matches = [hmac.compare_digest(key, given.strip()) for key in self._keys]
        return scheme.lower() == b"bearer" and any(matches)

    def _limited(self, receive: Receive) -> Receive:
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.most_bytes:
                raise HTTPException(413, TOO_LARGE.format(self.most_bytes))
            return message

        return limited

    def _too_large(self) -> JSONResponse:
        return error_response(413, TOO_LARGE.format(self.most_bytes), code="request_too_large")

    def _counted(self, scope: Scope, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                path = getattr(route, "path", "other")
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        return counted
