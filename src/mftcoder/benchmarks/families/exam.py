"""An exam of the user's own code, as `mft data mine --exam` writes it: complete, write and repair functions, and write tests.

`exam.jsonl` has one problem per line: HumanEval's fields, `kind`, `instruction` (for chat mode), `context` (what the function needs
of its module), and `buggy` (repair) or `mutants` (test). A function passes if it returns what the user's function returned for the
recorded calls. A test passes if it holds for the user's function and fails for at least one mutant. Tests are parsed as data
(asserts that call the function with literals), so no code of the model runs in the judge.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.answers import python_code
from mftcoder.benchmarks.answers.extraction import best_block, cut_at_stop_words
from mftcoder.benchmarks.problem import FENCE, Benchmark, Family, Problem, PromptMode, Task
from mftcoder.benchmarks.sources import Source
from mftcoder.errors import BenchmarkError
from mftcoder.execution.sandbox import Program

KINDS = ("complete", "write", "repair", "test")
SECONDS = 5.0  # of CPU time, for all calls of a problem
MAX_TEST_CHARS = 20_000  # of an answer that is parsed as a test
_FIELDS = ("task_id", "kind", "instruction", "prompt", "entry_point", "canonical_solution", "test", "context")
FILE = "exam.jsonl"
_SOURCE = Source(FILE)


def problem_of(record: Mapping[str, Any]) -> Problem:
    return Problem(
        id=str(record["task_id"]),
        language="python",
        prompt=record["prompt"],
        tests=record["test"],
        entry_point=record["entry_point"],
        stop=("\n```", "\ndef ", "\nclass ") if record["kind"] == "test" else python_code.STOP_WORDS,
        reference=record["canonical_solution"],
        fields=record,
    )


def _prompt(kind: str, problem: Problem, mode: PromptMode) -> str:
    instruction = str(problem.fields["instruction"])
    if mode == "chat":
        return instruction
    begun = f"\n\nassert {problem.entry_point}(" if kind == "test" else ""
    asked = f"{instruction}\n\n" if mode == "instruct" or kind == "repair" else ""
    return f"{asked}{problem.prompt}{begun}".strip()


def _extract(kind: str, problem: Problem, text: str, mode: PromptMode) -> str:
    if kind == "test" and mode != "chat":
        return f"assert {problem.entry_point}({cut_at_stop_words(text, problem.stop)}"
    return python_code.answer_in(problem, text, mode)


def _stop(problem: Problem, mode: PromptMode) -> tuple[str, ...]:
    """In chat mode the first fenced block is the answer, so its end is the stop word."""
    return (f"\n{FENCE}\n",) if mode == "chat" else problem.stop


def solution(problem: Problem) -> str:
    """An answer made of the user's own code."""
    return problem.reference if problem.fields["kind"] == "test" else problem.prompt + problem.reference


def worthless(problem: Problem) -> list[str]:
    """Answers that must fail a fair problem: an empty one, the given code with `pass` as its body, the unrepaired bug."""
    kind = problem.fields["kind"]
    if kind == "test":
        return [""]
    indent = problem.reference[: len(problem.reference) - len(problem.reference.lstrip(" "))]
    given = problem.fields["buggy"] if kind == "repair" else f"{problem.prompt}{indent}pass\n"
    return ["", given]


def program_of_function(problem: Problem, answer: str) -> Program:
    """The context, then the answer, as the candidate; the recorded calls as the tests."""
    block = best_block(answer, problem.entry_point)
    code = answer if block is None else block
    if not re.search(rf"^(async\s+)?def\s+{re.escape(problem.entry_point)}\b", code, re.MULTILINE):
        code = problem.prompt + code
    files = {"candidate": f"{problem.fields['context']}\n{code}\n", "tests": problem.tests}
    return Program("python", {**files, "entry_point": problem.entry_point})


def program_of_test(problem: Problem, answer: str) -> Program:
    """The user's function and its mutants as the candidate; the answer's asserts, which must fail for a mutant, as the tests."""
    block = best_block(answer, problem.entry_point)
    asserts = literal_asserts(answer if block is None else block, problem.entry_point)
    programs = [problem.fields["context"] + code for code in (f"{problem.prompt}\n", *problem.fields["mutants"])]
    tests = _TESTS if asserts else f"raise AssertionError({NO_ASSERT!r})\n"
    body = "\n".join(f"    {line}" for line in asserts)
    candidate = _CANDIDATE.format(programs=programs, name=problem.entry_point)
    files = {
        "candidate": candidate,
        "tests": tests.format(name=problem.entry_point, body=body, mutants=len(programs) - 1),
    }
    return Program("python", {**files, "entry_point": "_call"})


NO_ASSERT = "no assert in the answer that calls the function with literal values"
_CANDIDATE = """\
def _load(program):
    names = {{}}
    exec(program, names)
    return names[{name!r}]

_functions = [_load(program) for program in {programs!r}]

def _call(number, arguments, named):
    return _functions[number](*arguments, **named)
"""
_TESTS = """\
def _hold_for(number):
    def {name}(*arguments, **named):
        return _call(number, list(arguments), named)
{body}

_hold_for(0)
_caught = 0
for _number in range(1, {mutants} + 1):
    try:
        _hold_for(_number)
    except Exception:
        _caught += 1
assert _caught, "holds for every mutant as well"
"""


def literal_asserts(code: str, name: str) -> list[str]:
    """The asserts of a test, at its top level and in its test functions; other statements are ignored.

    [] if there is none, or if one contains anything but literals and calls of `name`.
    """
    try:
        statements = list(_asserts(ast.parse(code if len(code) <= MAX_TEST_CHARS else "").body))
        texts = [f"assert {ast.unparse(node.test)}" for node in statements]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return texts if all(_is_readable(node.test, name) and _calls(node.test) for node in statements) else []


def _asserts(statements: Iterable[ast.stmt]) -> Iterator[ast.Assert]:
    for statement in statements:
        if isinstance(statement, ast.Assert):
            yield statement
        elif isinstance(statement, ast.FunctionDef):
            yield from _asserts(statement.body if statement.name.startswith("test") else ())
        elif any(isinstance(inner, ast.Assert) for inner in ast.walk(statement)):
            raise ValueError("an assert under a condition or in a loop")


def _is_readable(node: ast.expr, name: str) -> bool:
    """True for an expression of literals, calls of `name`, comparisons, `not`, `and` and `or`."""
    if isinstance(node, ast.Call):
        is_name = isinstance(node.func, ast.Name) and node.func.id == name
        return is_name and all(_is_readable(part, name) for part in _parts(node))
    if isinstance(node, ast.Compare | ast.BoolOp) or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):
        return all(_is_readable(part, name) for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr))
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _parts(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _calls(node: ast.expr) -> bool:
    return any(isinstance(inner, ast.Call) for inner in ast.walk(node))


def _family(kind: str) -> Family:
    assembly = {"test": "asserts of literals, for the function and its mutants"}.get(
        kind, "context, answer, recorded calls"
    )
    notes = {"header": "what the function needs of its module", "test set": "recorded calls", "assembly": assembly}
    program = program_of_test if kind == "test" else program_of_function
    return Family(partial(_prompt, kind), partial(_extract, kind), program, notes, SECONDS, _stop)


def benchmark_of(kind: str, records: Iterable[Mapping[str, Any]], origin: str) -> Benchmark:
    """The problems of one kind; BenchmarkError for a record that lacks a field, or whose field is no text."""
    chosen = []
    for number, record in enumerate(records, start=1):
        missing = [field for field in _FIELDS if field not in record]
        missing += ["mutants"] if record.get("kind") == "test" and not record.get("mutants") else []
        if missing:
            raise BenchmarkError(
                f"{origin}: problem {number} lacks {', '.join(missing)}. `mft data mine --exam` writes it"
            )
        other = [field for field in _FIELDS if not isinstance(record[field], str)]
        if other:
            raise BenchmarkError(f"{origin}: problem {number}: {', '.join(other)}: is not a text")
        chosen += [problem_of(record)] if record["kind"] == kind else []
    return Benchmark(f"exam-{kind}", tuple(chosen), _family(kind), origin)


def load(kind: str, data_dir: Path | None) -> Benchmark:
    """`exam-{kind}`, from the folder that `mft data mine --exam` wrote."""
    records, origin = _SOURCE.records(f"exam-{kind}", data_dir)
    benchmark = benchmark_of(kind, records, origin)
    if not benchmark.problems:
        raise BenchmarkError(f"exam-{kind}: {origin} has no problem of kind '{kind}'")
    return benchmark


EXAM = {f"exam-{kind}": Task(partial(load, kind), "python", 0, "your code's", _SOURCE) for kind in KINDS}
