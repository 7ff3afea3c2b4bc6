"""The routes of the server."""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from mftcoder import __version__
from mftcoder.errors import DataError, GenerationError, reason
from mftcoder.generation.live_engine import Piece, Request
from mftcoder.jsonl import unique_keys
from mftcoder.serving import answers
from mftcoder.serving.answers import Header, Text
from mftcoder.serving.catalogue import Catalogue, ClientError
from mftcoder.serving.guard import error_response
from mftcoder.serving.metrics import Metrics
from mftcoder.serving.protocol import Asked, ChatRequest, Choices, CompletionRequest, InfillRequest
from mftcoder.serving.ui import PAGE, Ui
from mftcoder.serving.writing import Texts, Writer


class Api:
    """The answers to requests."""

    def __init__(self, catalogue: Catalogue, writer: Writer, metrics: Metrics):
        self.catalogue, self.writer, self.metrics = catalogue, writer, metrics

    @property
    def _bytes(self) -> answers.Bytes:
        return self.catalogue.vocabulary.bytes

    async def chat(self, asked: ChatRequest, http: HttpRequest) -> Response:
        """POST /v1/chat/completions."""
        requests = self.catalogue.chat(asked)
        noted = self._bytes if asked.logprobs else None

        def choice(number: int, text: Text, delta: str | None) -> dict[str, Any]:
            return answers.chat_choice(number, text, noted, delta=delta)

        return await self._answer(asked, http, requests, "chat.completion", choice)

    async def completions(self, asked: CompletionRequest, http: HttpRequest) -> Response:
        """POST /v1/completions."""
        requests = self.catalogue.completions(asked)
        noted = self._bytes if asked.logprobs is not None else None

        def choice(number: int, text: Text, delta: str | None) -> dict[str, Any]:
            return answers.completion_choice(number, text, noted)

        return await self._answer(asked, http, requests, "text_completion", choice)

    async def _answer(
        self,
        asked: Choices,
        http: HttpRequest,
        requests: list[Request],
        kind: str,
        choice: Callable[[int, Text, str | None], dict[str, Any]],
    ) -> Response:
        self._check_sampling(asked)
        texts = self.writer.open(requests, http.receive)
        prompt_tokens = sum(len(request.ids) + len(request.held) for request in requests) // (asked.n or 1)
        self.metrics.prompt_tokens.inc(prompt_tokens)
        header = Header.new(kind, self.catalogue.find(asked.model).name)
        if asked.stream:
            with_usage = asked.stream_options is not None and asked.stream_options.include_usage
            chunks = _chunks(texts, header, choice, prompt_tokens if with_usage else None)
            return EventStream(chunks)
        found = await _collect(texts, len(requests))
        choices = [choice(number, text, None) for number, text in enumerate(found)]
        return _json(header.answer(choices, usage=answers.usage(prompt_tokens, sum(texts.generated))))

    def _check_sampling(self, asked: Asked) -> None:
        """ClientError for sampling that only another engine has."""
        engine = self.writer.engine
        if engine is None:
            return
        if isinstance(asked, Choices) and asked.samplers is not None and not engine.takes_temperature_last:
            raise ClientError(400, "vLLM has no order of samplers. Leave it out", param="samplers")
        if (asked.temperature or 0) > engine.highest_temperature:
            highest = f"The engine of this server takes temperatures up to {engine.highest_temperature:g}."
            raise ClientError(400, highest, param="temperature")

    async def infill(self, asked: InfillRequest, http: HttpRequest) -> Response:
        """POST /infill, as llama.cpp's server answers it."""
        if asked.n_predict == 0:
            return _json({"content": "", "stop": True, "tokens_predicted": 0})
        self._check_sampling(asked)
        request = self.catalogue.infill(asked)
        texts = self.writer.open([request], http.receive)
        seconds = asked.t_max_predict_ms / 1000 if asked.t_max_predict_ms else None
        if asked.stream:
            return EventStream(infill_chunks(texts, seconds))
        text = (await _collect(texts, 1, seconds))[0]
        counts = {"tokens_predicted": texts.generated[0], "tokens_evaluated": len(request.ids) + len(request.held)}
        stop_type = {"stop": "eos", "length": "limit"}.get(str(text.finish_reason), "none")
        return _json({"content": text.text, "stop": True, "stop_type": stop_type, **counts})

    async def models(self) -> Response:
        """GET /v1/models."""
        return _json({"object": "list", "data": [self._described(served.name) for served in self.catalogue.models]})

    async def model(self, name: str) -> Response:
        """GET /v1/models/NAME."""
        return _json(self._described(self.catalogue.find(name).name))

    def _described(self, name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "mftcoder",
            "context_length": self.catalogue.context,
        }

    async def health(self) -> Response:
        """GET /health: 503 once the engine has died and the server must be started again."""
        if self.writer.engine is not None and not self.writer.engine.alive:
            return error_response(503, "The engine has died. Start the server again.")
        return _json({"status": "ok"})

    async def prometheus(self) -> Response:
        """GET /metrics."""
        engine = self.writer.engine
        if engine is not None:
            self.metrics.running.set(engine.running)
            self.metrics.waiting.set(len(engine.waiting))
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)


class EventStream(Response):
    """Server-sent events, which an iterator gives with whether they are the last ones. The iterator ends when the client has gone.

    Starlette's StreamingResponse writes the end of a body separately, and looks for the end of the client a second time, in a task.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncGenerator[tuple[bytes, bool], None]):
        self.chunks, self.status_code, self.background = chunks, 200, None
        self.init_headers({"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the events as they come."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self.chunks) as chunks:
            async for chunk, is_last in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": not is_last})


class StrictRequest(HttpRequest):
    """A request whose JSON must not give a key twice: the last value would win in silence."""

    async def json(self) -> Any:
        """The body, decoded. JSONDecodeError says where it is no JSON."""
        try:
            return json.loads(await self.body(), object_pairs_hook=unique_keys)
        except json.JSONDecodeError:
            raise
        except DataError as error:
            raise HTTPException(400, str(error)) from error
        except (ValueError, RecursionError) as error:  # another encoding, an endless integer, nested too deeply
            raise HTTPException(400, f"the body cannot be read as JSON: {reason(error)}") from error


class StrictRoute(APIRoute):
    """A route that reads its body as a StrictRequest."""

    def get_route_handler(self) -> Callable[[HttpRequest], Coroutine[Any, Any, Response]]:
        """The handler of a request."""
        handle = super().get_route_handler()

        async def handle_strictly(request: HttpRequest) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


def make_app(api: Api, lifespan: Callable[[], Any], ui: Ui | None = None) -> FastAPI:
    """The application. `lifespan` is an async context manager around its life; `ui` is the page, if it is offered."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        async with lifespan():
            yield

    # Without FastAPI's pages, which load scripts of another site into this origin.
    app = FastAPI(title="mft serve", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    app.router.route_class = StrictRoute
    posts: dict[str, Callable[..., Awaitable[Response]]] = {
        "/v1/chat/completions": api.chat,
        "/v1/completions": api.completions,
        "/infill": api.infill,
    }
    gets: dict[str, Callable[..., Awaitable[Response]]] = {
        "/v1/models": api.models,
        "/v1/models/{name:path}": api.model,
        "/health": api.health,
        "/metrics": api.prometheus,
    }
    if ui is not None:
        posts |= {"/ui/run": ui.run, "/ui/vote": ui.vote}
        gets[PAGE] = ui.page
    for path, endpoint in posts.items():
        app.add_api_route(path, endpoint, methods=["POST"], response_model=None)
    for path, endpoint in gets.items():
        app.add_api_route(path, endpoint, methods=["GET"], response_model=None)
        app.add_api_route(path, endpoint, methods=["HEAD"], response_model=None, include_in_schema=False)
    app.add_exception_handler(ClientError, _client_error)
    app.add_exception_handler(GenerationError, _engine_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    return app


async def _collect(texts: Texts, count: int, seconds: float | None = None) -> list[Text]:
    """The texts, when they are complete."""
    found = [Text() for _ in range(count)]
    async with texts, aclosing(texts.pieces(seconds)) as steps:
        async for pieces in steps:
            for number, piece in pieces:
                found[number].add(piece)
    return found


async def _chunks(
    texts: Texts, header: Header, choice: Callable[[int, Text, str | None], dict[str, Any]], prompt_tokens: int | None
) -> AsyncGenerator[tuple[bytes, bool], None]:
    """The server-sent events of an answer, those of a step together. With `prompt_tokens` the last one counts the tokens."""
    started: set[int] = set()

    def event(number: int, piece: Piece) -> bytes:
        delta = "" if number in started else "assistant"
        started.add(number)
        text = Text(piece.text, list(piece.tokens), piece.finish_reason)
        return _event(header.answer([choice(number, text, delta)], chunk=True))

    last = b""
    async with texts, aclosing(texts.pieces()) as steps:
        try:
            async for pieces in steps:
                written = b"".join(event(number, piece) for number, piece in pieces)
                if texts.complete:
                    last = written
                else:
                    yield written, False
        except GenerationError as error:
            yield _failure(error), True
            return
    if prompt_tokens is not None:
        counted = answers.usage(prompt_tokens, sum(texts.generated))
        last += _event(header.answer([], chunk=True, usage=counted))
    yield last + b"data: [DONE]\n\n", True


async def infill_chunks(texts: Texts, seconds: float | None) -> AsyncGenerator[tuple[bytes, bool], None]:
    """The events of llama.cpp's protocol for the pieces of one text, each with whether it is the last."""
    async with texts, aclosing(texts.pieces(seconds)) as steps:
        try:
            async for pieces in steps:
                events = [_event({"content": one.text, "stop": one.finish_reason is not None}) for _, one in pieces]
                yield b"".join(events), False
        except GenerationError as error:
            yield _failure(error), True
            return
    yield b"", True


def _failure(error: GenerationError) -> bytes:
    """The last event of a stream whose text cannot go on."""
    return _event({"error": {"message": str(error), "type": "server_error", "param": None, "code": None}})


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")


async def _client_error(_: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, ClientError)
    return error_response(error.status, str(error), param=error.param, code=error.code)


async def _engine_error(_: HttpRequest, error: Exception) -> JSONResponse:
    return error_response(500, str(error))


async def _http_error(request: HttpRequest, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = "request_too_large" if error.status_code == 413 else None
    return error_response(error.status_code, f"{request.method} {request.url.path}: {error.detail}", code=code)


async def _invalid(request: HttpRequest, error: Exception) -> JSONResponse:
    """All problems of a request in one line, each with its field."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return error_response(400, f"The body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}.")
    if "json" not in request.headers.get("content-type", ""):
        return error_response(400, "Send the request with Content-Type: application/json.")
    problems = []
    for problem in error.errors():
        where = _field(problem["loc"])
        what = str(problem["msg"]).removeprefix("Value error, ")
        problems.append(f"{where}: {what}" if where else what)
    return error_response(400, "; ".join(list(dict.fromkeys(problems))[:5])[:2000], param=_field(first["loc"]) or None)


def _field(location: Sequence[int | str]) -> str:
    """`messages.0.content`, without the names that pydantic gives the types that a field may have (str, list[str])."""
    return ".".join(str(part) for part in location[1:] if not re.search(r"str\b|\[", str(part)))
