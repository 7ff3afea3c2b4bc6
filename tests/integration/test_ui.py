"""The page of `mft serve --ui` in a real browser, driven over its debugging pipe."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from mftcoder.data.rendering.pairs import read_pair
from tests.served import served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SECONDS = 600
ON_PIPES = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser reads its commands from descriptor 3, and answers on 4."""


class Browser:
    """A page of Chromium; messages are JSON with a NUL behind each."""

    def __init__(self, send: int, receive: int):
        self._send, self._receive = send, os.fdopen(receive, "rb")
        self._number, self._rest, self._session = 0, b"", ""

    def open(self, url: str) -> None:
        """Load a page; its first script has run when this returns."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")
        self._call("Page.navigate", url=url)
        self.run(
            "new Promise(done => document.readyState === 'complete' ? done() : window.addEventListener('load', done))"
        )

    def run(self, script: str) -> Any:
        """The value of an expression, of its promise if it is one."""
        found = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait for a condition of the page that stays true once it is."""
        self.run(
            f"new Promise(done => {{ const look = () => ({condition}) ? done(true) : setTimeout(look, 20); look(); }})"
        )

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result

    def _message(self) -> bytes:
        while b"\0" not in self._rest:
            chunk = self._receive.read1(1 << 16)
            assert chunk, "the browser ended"
            self._rest += chunk
        message, _, self._rest = self._rest.partition(b"\0")
        return message


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A headless browser. It is killed after SECONDS, which ends every wait."""
    to_browser, from_browser = os.pipe(), os.pipe()
    options = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
    command = [str(CHROMIUM), *options.split(), f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [sys.executable, "-c", ON_PIPES, str(to_browser[0]), str(from_browser[1]), *command],
        pass_fds=(to_browser[0], from_browser[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    killer = threading.Timer(SECONDS, process.kill)
    killer.start()
    made = Browser(to_browser[1], from_browser[0])
    try:
        yield made
    finally:
        killer.cancel()
        killer.join()
        process.kill()
        process.wait()
        os.close(to_browser[1])
        made._receive.close()


@pytest.mark.slow(reason="starts a browser and a server")
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (Debian: apt-get install chromium)")
def test_a_person_chats_runs_code_compares_and_votes(tiny_llama_dir: Path, tmp_path: Path) -> None:
    votes = tmp_path / "votes.jsonl"
    options = ("--name", "tiny", "--dtype", "float32", "--ui", "--votes", votes)
    with (
        served(tiny_llama_dir, *options, MFTCODER_API_KEY="a-key-of-the-test") as server,
        browser(tmp_path / "profile") as page,
    ):
        page.open(f"{server.url}/")
        page.run("at('question').value = 'Without a key?'; at('ask').requestSubmit()")
        page.wait("document.body.dataset.state === 'idle'")
        assert "The API key is missing or wrong" in page.run("document.querySelector('.answers .problem').textContent")
        page.run(
            "at('reset').click(); at('key').value = 'a-key-of-the-test'; at('key').dispatchEvent(new Event('change'))"
        )
        page.wait("document.body.dataset.models === '1'")
        page.run("at('tokens').value = 12; at('temperature').value = 1; at('question').value = 'Write a loop.'")
        page.run("at('ask').requestSubmit()")
        page.wait("document.body.dataset.state === 'idle'")
        assert page.run("document.querySelectorAll('.answer').length") == 1
        assert page.run("messages.map(one => one.role).join()") == "user,assistant"
        assert page.run("document.querySelectorAll('.problem, .vote').length") == 0

        page.run("at('right').value = 'tiny'; at('question').value = 'And another?'; at('ask').requestSubmit()")
        page.wait("document.querySelectorAll('.turn').length === 2 && document.body.dataset.state === 'idle'")
        assert page.run("document.querySelectorAll('.vote').length") == 2
        page.run("document.querySelectorAll('.vote')[1].click()")
        page.wait("document.querySelector('.votes').dataset.done === 'yes'")
        pair = read_pair(votes.read_bytes().splitlines()[0], task="votes", origin="votes.jsonl:1")
        assert [one.role for one in pair.first.messages] == ["user", "assistant", "user", "assistant"]
        assert pair.first.messages[-1].content == page.run("messages[messages.length - 1].content")

        code = "Look:\\n```python\\nprint(6 * 7)\\n```\\n<img src=x onerror=alert(1)>"
        page.run(f"at('turns').replaceChildren(); show(at('turns'), '{code}')")
        assert page.run("document.querySelectorAll('#turns img').length") == 0
        page.run("document.querySelector('.run').click()")
        page.wait("document.querySelector('.output').dataset.done === 'yes'")
        assert page.run("document.querySelector('.output').textContent") == "42\n"
