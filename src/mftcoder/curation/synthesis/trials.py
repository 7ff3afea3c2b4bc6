"""Run code that a model wrote against tests that a model wrote, in the sandbox: what the methods `tests` and `repair` stand on."""

import ast
import asyncio
import itertools
import random
from collections.abc import Sequence

import orjson

from mftcoder.curation.example import Example, fenced, fenced_blocks, parse_python
from mftcoder.curation.mining.mutations import mutations
from mftcoder.curation.statistics import language_name
from mftcoder.curation.verification.config import VerifyConfig
from mftcoder.curation.verification.plan import Run, plan, tests_of
from mftcoder.curation.verification.verdict import Verdict, verdict_of
from mftcoder.data.records.conversation import Message, make_conversation
from mftcoder.errors import UnjudgedError
from mftcoder.execution.run_programs import Sandbox
from mftcoder.execution.sandbox import Limits

_CONFIG = VerifyConfig(checks=("tests", "import", "compile"))
_LIMITS = Limits(seconds=_CONFIG.timeout, memory_mb=_CONFIG.memory_mb)


class Trials:
    """A sandbox that several coroutines share. Tests run beside the code, never in this process."""

    def __init__(self, sandbox: Sandbox):
        self._sandbox = sandbox

    async def run(self, codes: Sequence[str], tests: str, entry_point: str = "") -> list[Verdict]:
        """The verdict on each code. UnjudgedError if the sandbox itself fails."""
        return await asyncio.to_thread(self._run, codes, tests, entry_point)

    def _run(self, codes: Sequence[str], tests: str, entry_point: str) -> list[Verdict]:
        planned = [plan(_example(code, tests, entry_point), _CONFIG) for code in codes]
        runs: list[Run] = [run for found in planned for run in found.runs]
        results = iter(self._sandbox.run_all((run.program() for run in runs), _LIMITS))
        verdicts = []
        for found in planned:
            made = [verdict_of(next(results), run.language, tuple(run.checks)) for run in found.runs]
            if None in made:
                raise UnjudgedError("the sandbox failed, which says nothing about the code. `mft doctor` looks at it")
            verdicts.append(next((verdict for verdict in made if verdict is not None), None) or found.known[0])
        return verdicts


def passes(verdict: Verdict) -> bool:
    """Whether the tests ran, passed, and would have failed without the code."""
    return verdict.outcome == "passed" and "tests" in verdict.checks


def _example(code: str, tests: str, entry_point: str) -> Example:
    turns = [Message("user", "?", False), Message("assistant", fenced(code), True)]
    line = orjson.dumps({"tests": tests, "entry_point": entry_point})
    return Example(make_conversation(turns, id="", task="", origin=""), line)


def python_of(text: str) -> str:
    """The Python code of a reply: its blocks that are fenced as Python or as nothing, each once. Small models repeat themselves."""
    blocks = [block for block in fenced_blocks(text) if language_name(block.language) in ("python", "unnamed")]
    return "\n\n".join(dict.fromkeys(block.code.rstrip() for block in blocks if block.code.strip()))


def tests_in(example: Example) -> tuple[str, str]:
    """The tests of a record and the function that they are about; empty without any."""
    return tests_of(example, _CONFIG)


def usable_tests(text: str, code: str) -> str:
    """The tests of a reply, without copies of the code's own functions, which would be tested instead of it; empty without an assert."""
    tree, tested = parse_python(python_of(text)), parse_python(code)
    if tree is None or tested is None:
        return ""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    own = {node.name for node in tested.body if isinstance(node, kinds)}
    tree.body = [node for node in tree.body if not (isinstance(node, kinds) and node.name in own)]
    asserts = [inner for node in ast.walk(tree) if isinstance(node, ast.Assert) for inner in ast.walk(node)]
    return ast.unparse(tree) if any(isinstance(node, ast.Name) and node.id in own for node in asserts) else ""


def single_tests(tests: str) -> list[str]:
    """Each assert and each test function alone, with the other statements before it: imports, helpers, values."""
    body = ast.parse(tests).body
    claims = [node for node in body if _is_claim(node)]
    others = [node for node in body if not _is_claim(node)]
    return [ast.unparse(ast.Module([*others, claim], [])) for claim in claims]


def _is_claim(node: ast.stmt) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name.startswith("test")
    return isinstance(node, ast.Assert | ast.ClassDef) and any(
        isinstance(inner, ast.Assert | ast.FunctionDef) for inner in ast.walk(node)
    )


def joined_tests(tests: str, kept: Sequence[str]) -> str:
    """The tests without those single ones that are not kept."""
    body = ast.parse(tests).body
    singles = iter(single_tests(tests))
    return ast.unparse(ast.Module([node for node in body if not _is_claim(node) or next(singles) in kept], []))


def signatures(code: str) -> str:
    """The functions and classes of a module as a prompt names them: `area(width, height)`, `Stack`."""
    tree = parse_python(code)
    names = []
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.append(f"`{node.name}({ast.unparse(node.args)})`")
        elif isinstance(node, ast.ClassDef):
            names.append(f"`{node.name}`")
    return ", ".join(names)


def mutants(code: str, count: int, seed: str) -> list[str]:
    """At most `count` variants of the code with one bug in one of its functions, taken from the functions in turn."""
    tree = parse_python(code)
    if tree is None:
        return []
    generator = random.Random(seed)
    lines = code.splitlines(keepends=True)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    variants = [_variants(lines, node, generator) for node in functions]
    in_turn = (variant for group in itertools.zip_longest(*variants) for variant in group if variant is not None)
    return list(itertools.islice(in_turn, count))


def _variants(
    lines: Sequence[str], node: ast.FunctionDef | ast.AsyncFunctionDef, generator: random.Random
) -> list[str]:
    """The code with a bug in one function, at most 20 times. A list, so that functions take turns without sharing the generator."""
    start, end = node.lineno - 1, node.end_lineno or node.lineno
    before, source, after = "".join(lines[:start]), "".join(lines[start:end]), "".join(lines[end:])
    return [f"{before}{bug.source}{after}" for bug in itertools.islice(mutations(source, generator), 20)]
