"""The verbs as tools of the Model Context Protocol. A refused answer is an error of the tool, with its reasons."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from anyio.to_thread import run_sync
from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from mftcoder import __version__
from mftcoder.assistant.assistant import Assistant
from mftcoder.assistant.rounds import Proposal
from mftcoder.errors import MftError, NoAnswerAcceptedError

_PATH = 4200
"""Characters of a path and a place in it: Linux takes 4,096 bytes."""
MOST_SAID = 4000
"""Characters of an error: it may quote what the caller gave."""
Where = Annotated[
    str,
    Field(
        description="FILE, FILE:FUNCTION or FILE:LINE within the working folder, such as src/shapes.py:area",
        max_length=_PATH,
    ),
]
Position = Annotated[str, Field(description="FILE:LINE or FILE:LINE:COLUMN, both from 1", max_length=_PATH)]
Tests = Annotated[
    str | None,
    Field(description="A file of tests in the working folder; without it tests are written", max_length=_PATH),
]
Apply = Annotated[bool, Field(description="Write the accepted change into the file")]
Made = TypeVar("Made")
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)


def make_server(assistant: Assistant, *, allow_apply: bool) -> MCPServer:
    """A server with one tool a verb. `allow_apply` lets a caller write changes; without it every tool only reads."""
    server: MCPServer = _StrictServer("mft assist", version=__version__, log_level="WARNING")
    writes = ToolAnnotations(read_only_hint=not allow_apply, destructive_hint=allow_apply, open_world_hint=False)

    async def made(work: Callable[[], Proposal], *, apply: bool = False) -> dict[str, Any]:
        if apply and not allow_apply:
            raise ToolError("apply: this server only reads. Start it with --allow-apply, or apply the patch yourself")
        proposal = await run_sync(_tried, work)
        if apply:  # a call of its own: one that was cancelled meanwhile ends here and writes nothing
            await run_sync(_tried, lambda: assistant.apply(proposal))
        return _shown(proposal, applied=apply)

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
        """Rewrite a function in a better form. The result is a patch of this function, held by tests that were run."""
        return await made(lambda: assistant.optimise(place, tests=tests), apply=apply)

    @server.tool(annotations=writes)
    async def fix(place: Where, error: str, tests: Tests = None, apply: Apply = False) -> dict[str, Any]:
        """Correct a function that fails with `error`, the text of a log. The result is a patch, held by tests that were run."""
        return await made(lambda: assistant.fix(place, error, tests=tests), apply=apply)

    @server.tool(annotations=_READS)
    async def review(diff: str) -> dict[str, Any]:
        """Review a unified diff. Every finding names a line that the diff adds."""
        return await made(lambda: assistant.review(diff))

    return server


class _StrictServer(MCPServer):
    """A server that refuses arguments that a tool does not have: a misspelt one would do nothing."""

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
        """Call a tool. ToolError for an unknown argument."""
        schemas = {tool.name: tool.input_schema for tool in await self.list_tools()}
        known = schemas.get(name, {"properties": arguments}).get("properties", {})
        unknown = [one for one in arguments if one not in known]
        if unknown:
            raise ToolError(f"{name}: has no argument {unknown[0][:100]!r}. Its arguments: {', '.join(known)}")
        return await super().call_tool(name, arguments, context)


def _tried(work: Callable[[], Made]) -> Made:
    """What work gives. ToolError for a refused answer and for a mistake of the caller."""
    try:
        return work()
    except (NoAnswerAcceptedError, MftError) as error:
        said = "\n".join(error.problems)
        half = MOST_SAID // 2
        raise ToolError(said if len(said) <= MOST_SAID else f"{said[:half]} ... {said[-half:]}") from error


def _shown(proposal: Proposal, *, applied: bool) -> dict[str, Any]:
    """What a proposal holds."""
    shown = ("text", "patch", "tests", "score", "notes")
    return {
        **{name: getattr(proposal, name) for name in shown if getattr(proposal, name)},
        "refused": [refusal.line for refusal in proposal.refusals],
        "applied": applied,
    }
