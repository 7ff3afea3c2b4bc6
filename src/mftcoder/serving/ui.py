"""The page of `mft serve --ui`, and what only it asks for: code that runs in the sandbox, votes that become preference records.

A browser sends requests of any site to this machine. So these paths take JSON only, from the page's own origin only, and without an API
key only under a name of this machine, so that no other name may lead here.
"""

import base64
import hashlib
import re
import threading
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import orjson
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from mftcoder.data.records.conversation import ROLES
from mftcoder.data.rendering.pairs import read_pair
from mftcoder.errors import ConfigError, DataError, ExecutionError
from mftcoder.execution.run_programs import Sandbox, run_script
from mftcoder.jsonl import append_line
from mftcoder.serving.catalogue import ClientError
from mftcoder.serving.protocol import ChatMessage, Checked

PAGE = "/"
MOST_RUNS = 4
"""Programs that run or wait; more are refused with 429."""
_OWN_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_Text = Annotated[str, Field(min_length=1, max_length=1 << 18)]


class RunRequest(Checked):
    """POST /ui/run."""

    code: _Text


class Vote(Checked):
    """POST /ui/vote: of two answers to a chat, the better one."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=1000)]
    chosen: _Text
    rejected: _Text
    chosen_model: Annotated[str, Field(max_length=500)] = ""
    rejected_model: Annotated[str, Field(max_length=500)] = ""

    def record(self) -> Mapping[str, Any]:
        """As `kind: dpo` reads it. ClientError for what is no pair."""
        if self.chosen.strip() == self.rejected.strip() or not self.chosen.strip() or not self.rejected.strip():
            raise ClientError(400, "The two answers must differ, and neither may be empty.", param="chosen")
        if self.messages[-1].role != "user":
            raise ClientError(400, "The last message must be the user's.", param="messages")
        turns = [{"role": ROLES[message.role], "content": message.text} for message in self.messages]
        sides = {"chosen": self.chosen, "rejected": self.rejected}
        pair: dict[str, Any] = {name: [*turns, {"role": "assistant", "content": text}] for name, text in sides.items()}
        try:
            read_pair(orjson.dumps(pair), task="", origin="")
        except DataError as error:
            raise ClientError(
                400, f"No training reads this chat: {'; '.join(error.problems)}", param="messages"
            ) from error
        return {**pair, "chosen_model": self.chosen_model, "rejected_model": self.rejected_model}


class Ui:
    """The page and its two requests."""

    def __init__(self, votes: Path, *, has_keys: bool):
        self.votes, self.has_keys = votes, has_keys
        self._page = (files("mftcoder.serving") / "page.html").read_text(encoding="utf-8")
        self._headers = {"Content-Security-Policy": _policy(self._page), "X-Content-Type-Options": "nosniff"}
        self._sandbox: Sandbox | None = None
        self._lock = threading.Lock()
        self._runs = threading.BoundedSemaphore(MOST_RUNS)
        if votes.is_dir():
            raise ConfigError(f"--votes {votes}: is a folder; give a file")
        if votes.suffix != ".jsonl":
            raise ConfigError(f"--votes {votes}: the name must end in .jsonl, so that mft train reads it")

    async def page(self) -> Response:
        """GET /."""
        return HTMLResponse(self._page, headers=self._headers)

    async def run(self, asked: RunRequest, http: Request) -> Response:
        """POST /ui/run: what a Python script prints in the sandbox."""
        self._check_origin(http)
        if not self._runs.acquire(blocking=False):
            raise ClientError(429, f"{MOST_RUNS} programs are running. Try again.", code="too_many_runs")
        try:
            output = await run_in_threadpool(self._output, asked.code)
        finally:
            self._runs.release()
        return JSONResponse({"output": output})

    async def vote(self, asked: Vote, http: Request) -> Response:
        """POST /ui/vote: one more preference record."""
        self._check_origin(http)
        await run_in_threadpool(self._keep, asked.record())
        return JSONResponse({"kept": True})

    def close(self) -> None:
        with self._lock:
            if self._sandbox is not None:
                self._sandbox.close()

    def _output(self, code: str) -> str:
        try:
            with self._lock:
                if self._sandbox is None:
                    self._sandbox = Sandbox(workers=1)
            return run_script(self._sandbox, code)
        except ExecutionError as error:
            return f"{error}\n"

    def _keep(self, record: Mapping[str, Any]) -> None:
        with self._lock:
            try:
                self.votes.parent.mkdir(parents=True, exist_ok=True)
                append_line(self.votes, orjson.dumps(record))
            except OSError as error:
                raise ClientError(500, f"The vote cannot be written: {self.votes}: {error.strerror}") from error

    def _check_origin(self, http: Request) -> None:
        """ClientError (403) for a request that another site's page could have sent."""
        host, origin = http.headers.get("host", ""), http.headers.get("origin")
        if not self.has_keys and re.sub(r":\d+\Z", "", host.lower()) not in _OWN_NAMES:
            raise ClientError(403, f"The host {host[:100]!r} is no name of this machine.", code="wrong_host")
        is_own = origin is None or urlsplit(origin).netloc.lower() == host.lower()
        if not is_own or http.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            raise ClientError(403, "Only the page of this server may ask this.", code="wrong_origin")
        if http.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ClientError(400, "Send the request with Content-Type: application/json.")


def _policy(page: str) -> str:
    """Only the page's own script and style count; it talks to this server alone and stands in no frame."""
    parts = {name: re.search(rf"<{name}>(.*?)</{name}>", page, re.DOTALL) for name in ("script", "style")}
    hashes = {
        name: "'sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode() + "'"
        for name, found in parts.items()
        if found
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
