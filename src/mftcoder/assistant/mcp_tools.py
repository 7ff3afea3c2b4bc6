"""The verbs as tools of the Model Context Protocol. A refused answer is an error of the tool, with its reasons."""

from collections.abc import Callable
from typing import Annotated, Any

from anyio.to_thread import run_sync
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from mftcoder import __version__
from mftcoder.assistant.assistant import Assistant
from mftcoder.assistant.rounds import Proposal
from mftcoder.errors import MftError, NoAnswerAcceptedError

Where = Annotated[
    str, Field(description="FILE, FILE:FUNCTION or FILE:LINE within the working folder, such as src/shapes.py:area")
]
Position = Annotated[str, Field(description="FILE:LINE or FILE:LINE:COLUMN, both from 1")]
Tests = Annotated[str | None, Field(description="A file of tests in the working folder; without it tests are written")]
Apply = Annotated[bool, Field(description="Write the accepted change into the file")]
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)


def make_server(assistant: Assistant, *, allow_apply: bool) -> MCPServer:
    """A server with one tool a verb. `allow_apply` lets a caller write changes; without it every tool only reads."""
    server: MCPServer = MCPServer("mft assist", version=__version__, log_level="WARNING")
    writes = ToolAnnotations(read_only_hint=not allow_apply, destructive_hint=allow_apply, open_world_hint=False)

    async def made(work: Callable[[], Proposal], *, apply: bool = False) -> dict[str, Any]:
        return await run_sync(_answer, assistant, work, apply, allow_apply)

    @server.tool(annotations=writes)
    async def complete(place: Position, apply: Apply = False) -> dict[str, Any]:
        """Write the rest of a line, or a block, at a position. Nothing else of the file changes, and it gets no new syntax error."""
        return await made(lambda: assistant.complete(place), apply=apply)

    @server.tool(annotations=writes)
    async def comment(place: Where, apply: Apply = False) -> dict[str, Any]:
        """Write a docstring and comments. The program stays the same: its syntax tree is compared."""
        return await made(lambda: assistant.comment(place), apply=apply)

    @server.tool(annotations=_READS)
    async def explain(place: Where) -> dict[str, Any]:
        """Say in prose what code does."""
        return await made(lambda: assistant.explain(place))

    @server.tool(annotations=_READS)
    async def test(place: Where) -> dict[str, Any]:
        """Write tests of a function. They were run: each passes on the code and fails on at least one mutant of it."""
        return await made(lambda: assistant.test(place))

    @server.tool(annotations=writes)
    async def optimise(place: Where, tests: Tests = None, apply: Apply = False) -> dict[str, Any]:
        """Rewrite a Python or JavaScript function in a better form. The result is a patch of this function, held by tests that were run."""
        return await made(lambda: assistant.optimise(place, tests=tests), apply=apply)

    @server.tool(annotations=writes)
    async def fix(place: Where, error: str, tests: Tests = None, apply: Apply = False) -> dict[str, Any]:
        """Correct a Python or JavaScript function that fails with `error`, the text of a log. The result is a patch, held by tests that were run."""
        return await made(lambda: assistant.fix(place, error, tests=tests), apply=apply)

    @server.tool(annotations=_READS)
    async def review(diff: str) -> dict[str, Any]:
        """Review a unified diff. Every finding names a line that the diff adds."""
        return await made(lambda: assistant.review(diff))

    return server


def _answer(assistant: Assistant, work: Callable[[], Proposal], apply: bool, allow_apply: bool) -> dict[str, Any]:
    """What a proposal holds. ToolError for a refused answer and for a mistake of the caller."""
    try:
        if apply and not allow_apply:
            raise ToolError("apply: this server only reads. Start it with --allow-apply, or apply the patch yourself")
        proposal = work()
        if apply:
            assistant.apply(proposal)
    except (NoAnswerAcceptedError, MftError) as error:
        raise ToolError("\n".join(error.problems)) from error
    shown = ("text", "patch", "tests", "score", "notes")
    return {
        **{name: getattr(proposal, name) for name in shown if getattr(proposal, name)},
        "refused": [refusal.line for refusal in proposal.refusals],
        "applied": apply,
    }
