"""`mft assist mcp` as a process, asked by the client of the kept SDK over stdio."""

import asyncio
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx", reason="the extra `curate` brings httpx")
pytest.importorskip("tree_sitter_python", reason="the extra `curate` brings the grammars")

from mftcoder.curation.synthesis.trials import fenced
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
