"""A real HTTP server that answers like an OpenAI-compatible endpoint, by a script: it can be slow, wrong, limited, or another model."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "scripted-7b"


@dataclass(frozen=True)
class Asked:
    """A request: its number from 1, its time, its headers and its body."""

    number: int
    moment: float
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        """The last message."""
        return str(self.body["messages"][-1]["content"])

    @property
    def content(self) -> str:
        """What makes two requests the same."""
        return json.dumps(self.body, sort_keys=True)


@dataclass(frozen=True)
class Answer:
    """What comes back. `raw` replaces the whole body; `never` keeps the connection open without an answer."""

    text: str | None = "An answer."
    model: str = MODEL
    finish: str = "stop"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    usage: tuple[int, int] | None = (10, 5)
    raw: bytes | None = None
    never: bool = False

    def body(self) -> bytes:
        """The body of the response."""
        if self.raw is not None:
            return self.raw
        choice = {"index": 0, "finish_reason": self.finish, "message": {"role": "assistant", "content": self.text}}
        value: dict[str, Any] = {"object": "chat.completion", "model": self.model, "choices": [choice]}
        if self.usage is not None:
            value["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), self.usage, strict=True))
        return json.dumps(value).encode()


def error(status: int, message: str = "no", *, headers: Mapping[str, str] | None = None, code: str = "") -> Answer:
    """A failure as such endpoints word it."""
    raw = json.dumps({"error": {"message": message, "code": code or None}}).encode()
    return Answer(status=status, raw=raw, headers=headers or {})


class ScriptedEndpoint:
    """A context manager: `url` for the client, `asked` for what it received. `script` makes the answer to a request."""

    def __init__(self, script: Callable[[Asked], Answer]):
        self.script = script
        self.asked: list[Asked] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> "ScriptedEndpoint":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint._answer(self, body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            asked = Asked(len(self.asked) + 1, time.monotonic(), headers, body)
            self.asked.append(asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            answer = self.script(asked) if handler.path == "/v1/chat/completions" else error(404, "no such path")
            if answer.never:
                self._closing.wait()
                handler.close_connection = True
                return
        finally:
            with self._lock:
                self._at_once -= 1
        content = answer.body()
        handler.send_response(answer.status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **answer.headers,
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)
