"""`mft assist mcp` as a process, asked by the client of the kept SDK over stdio."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="the extra `curate` brings httpx")
pytest.importorskip("tree_sitter_python", reason="the extra `curate` brings the grammars")

from mftcoder.curation.example import fenced
from tests.scripted_endpoint import Answer, Asked, ScriptedEndpoint

pytestmark = pytest.mark.skipif(find_spec("mcp") is None, reason="the extra `assist` brings mcp")

AREA = "def area(width, height):\n    return width * height\n"
DOCUMENTED = AREA.replace(":\n", ':\n    """The area."""\n', 1)
TESTS = "def test_area():\n    assert area(2, 3) == 6\n"


def answer(asked: Asked) -> Answer:
    if "Write tests" in asked.text:
        return Answer(fenced(TESTS))
    return Answer(fenced(DOCUMENTED if "liar" not in asked.text else AREA.replace("*", "+")))


async def calls(folder: Path, url: str, words: list[str], *asked: tuple[str, dict[str, Any]]) -> list[Any]:
    """The names of the tools, and the result of each call."""
    import mcp  # a second, which only the worker that runs this file need wait

    command = ["-m", "mftcoder", "assist", "mcp", "--url", url, "--model-name", "scripted", "--rounds", "1", *words]
    server = mcp.StdioServerParameters(command=sys.executable, args=[*command, "--folder", str(folder)])
    async with mcp.Client(server) as client:
        names = sorted(tool.name for tool in (await client.list_tools()).tools)
        return [names, *[await client.call_tool(name, arguments) for name, arguments in asked]]


def test_the_verbs_are_tools_and_refusals_are_their_errors(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text(AREA)
    (tmp_path / "lies.py").write_text(AREA.replace("area", "liar"))
    place = {"place": "shapes.py:area"}
    with ScriptedEndpoint(answer) as endpoint:
        names, made, tested, lied, outside, applied = asyncio.run(
            calls(
                tmp_path,
                endpoint.url,
                [],
                ("comment", place),
                ("test", place),
                ("comment", {"place": "lies.py:liar"}),
                ("comment", {"place": "../shapes.py"}),
                ("comment", {**place, "apply": True}),
            )
        )
        assert names == ["comment", "complete", "explain", "fix", "optimise", "review", "test"]
        assert '+    """The area."""' in made.structured_content["patch"]
        assert json.loads(made.content[0].text) == made.structured_content
        assert " mutants fail" in tested.structured_content["score"]
        assert [result.is_error for result in (made, tested, lied, outside, applied)] == [
            False,
            False,
            True,
            True,
            True,
        ]
        assert "code_changed" in lied.content[0].text
        assert "outside the working folder" in outside.content[0].text
        assert "--allow-apply" in applied.content[0].text
        assert (tmp_path / "shapes.py").read_text() == AREA
        _, written = asyncio.run(
            calls(tmp_path, endpoint.url, ["--allow-apply"], ("comment", {**place, "apply": True}))
        )
        assert written.structured_content["applied"] is True
        assert (tmp_path / "shapes.py").read_text() == DOCUMENTED


class Client:
    """A client that writes its lines itself, so that they may be anything."""

    def __init__(self, folder: Path, url: str, *words: str):
        command = ["-m", "mftcoder", "assist", "mcp", "--url", url, "--model-name", "scripted", "--rounds", "1", *words]
        self.process = subprocess.Popen(
            [sys.executable, *command, "--folder", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.number = 0
        hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "hostile", "version": "1"}}
        self.ask("initialize", hello)
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def send(self, message: Any) -> None:
        assert self.process.stdin is not None
        line = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def start(self, method: str, params: Any) -> int:
        """Send a request and do not wait."""
        self.number += 1
        self.send({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params})
        return self.number

    def ask(self, method: str, params: Any) -> dict[str, Any]:
        """The answer to a request."""
        number = self.start(method, params)
        assert self.process.stdout is not None
        while True:
            answer: dict[str, Any] = json.loads(self.process.stdout.readline())
            if answer.get("id") == number:
                return answer

    def refusal(self, tool: str, arguments: Any) -> str:
        """The text of a call's error."""
        answer = self.ask("tools/call", {"name": tool, "arguments": arguments})
        if "error" in answer:
            return str(answer["error"]["message"])
        assert answer["result"]["isError"], answer
        return str(answer["result"]["content"][0]["text"])

    def end(self) -> None:
        """Close the client's side, and wait for the server's end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.__exit__(None, None, None)


HOSTILE: list[tuple[str, Any, str]] = [
    ("comment", {"place": "../outside.py"}, "outside the working folder"),
    ("comment", {"place": "shapes.py/../../outside.py"}, "outside the working folder"),
    ("comment", {"place": "/etc/hosts.py"}, "outside the working folder"),
    ("comment", {"place": "/proc/self/root/etc/hosts.py"}, "outside the working folder"),
    ("comment", {"place": "/proc/self/fd/0"}, "outside the working folder"),
    ("comment", {"place": "~/shapes.py"}, "outside the working folder"),
    ("comment", {"place": "link.py"}, "outside the working folder"),
    ("comment", {"place": "folder/hosts.py"}, "outside the working folder"),
    ("comment", {"place": "loop.py"}, "is no path"),
    ("comment", {"place": "a\0b.py"}, "is no path"),
    ("comment", {"place": "..%2foutside.py"}, "No such file"),
    ("comment", {"place": "\uff0e\uff0e/outside.py"}, "No such file"),
    ("comment", {"place": "pipe.py"}, "is no plain file"),
    ("comment", {"place": "latin.py"}, "is not UTF-8"),
    ("comment", {"place": "big.py"}, "has more than 1 MB"),
    ("comment", {"place": "x" * 4000 + ".py"}, "File name too long"),
    ("comment", {"place": "x" * 10_000_000}, "at most 4200 characters"),
    ("comment", {"place": f"shapes.py:{'x' * 4100}"}, "has no function"),
    ("optimise", {"place": "shapes.py:area", "tests": "../outside.py"}, "outside the working folder"),
    ("fix", {"place": "shapes.py", "error": "File \"shapes.py\", line 999999999999\nx: y\n" * 50_000}, "names no line"),
    ("review", {"diff": "-" * 5_000_000}, "more than 24,000"),
    ("comment", {"place": "shapes.py:area", "apply": True}, "this server only reads"),
    ("comment", {"place": "shapes.py:area", "aply": True}, "has no argument 'aply'. Its arguments: place, apply"),
    ("comment", {"place": 1}, "valid string"),
    ("comment", {"place": ["shapes.py"]}, "valid string"),
    ("comment", {"place": None}, "valid string"),
    ("comment", {"place": "shapes.py:area", "apply": "perhaps"}, "valid boolean"),
    ("comment", {}, "Field required"),
    ("comment", [], "Invalid request parameters"),
    ("comment", "place", "Invalid request parameters"),
    ("__import__", {}, "Unknown tool"),
]  # fmt: skip
GARBAGE = [b"garbage", b"\xff\xfe\x00", b"[]", b"[" * 100_000, b"{}", b"", b'{"jsonrpc":"2.0","id":{"a":1},"method":"x"}', b'{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"comment","arguments":{"place":"\\ud800.py"}}}']  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_hostile_client_gets_one_short_error_for_each_call_and_nothing_is_written(tmp_path: Path) -> None:
    """One server for all calls: it answers the last one as it answers the first."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "shapes.py").write_text(AREA)
    (tmp_path / "outside.py").write_text(AREA)
    (work / "link.py").symlink_to(tmp_path / "outside.py")
    (work / "folder").symlink_to("/etc")
    (work / "loop.py").symlink_to(work / "loop.py")
    os.mkfifo(work / "pipe.py")
    (work / "latin.py").write_bytes(b"x = '\xff'\n")
    with (work / "big.py").open("wb") as big:
        big.truncate(50_000_000)
    before = {path: contents(path) for path in (work, tmp_path)}
    with ScriptedEndpoint(answer) as endpoint, Client(work, endpoint.url) as client:
        for tool, arguments, problem in HOSTILE:
            said = client.refusal(tool, arguments)
            assert problem in said and len(said) < 5000, (tool, str(arguments)[:100], said[:500])
        assert not endpoint.asked
        for line in GARBAGE:
            client.send(line)
        numbers = {
            client.start("tools/call", {"name": "comment", "arguments": {"place": "shapes.py:area"}}) for _ in range(8)
        }
        assert client.process.stdout is not None
        answers = []
        while numbers:
            made = json.loads(client.process.stdout.readline())
            if made.get("id") in numbers:
                numbers.remove(made["id"])
                answers.append(made)
        assert all('"""The area."""' in str(one["result"]["structuredContent"]["patch"]) for one in answers)
        client.end()
    assert {path: contents(path) for path in (work, tmp_path)} == before


def test_a_call_that_was_cancelled_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text(AREA)
    is_asked, goes_on = threading.Event(), threading.Event()

    def late(asked: Asked) -> Answer:
        is_asked.set()
        goes_on.wait(60)
        return answer(asked)

    with ScriptedEndpoint(late) as endpoint, Client(tmp_path, endpoint.url, "--allow-apply") as client:
        number = client.start(
            "tools/call", {"name": "comment", "arguments": {"place": "shapes.py:area", "apply": True}}
        )
        assert is_asked.wait(60)
        client.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}})
        client.ask("tools/list", {})  # the lines are read in their order
        goes_on.set()
        client.end()
    assert (tmp_path / "shapes.py").read_text() == AREA
