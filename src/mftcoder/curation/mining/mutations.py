"""Put one typical bug into the text of a function.

The syntax tree shows where a change makes sense. The change is made in the text, so comments, quotes and layout stay. Each kind of bug is
one function that yields all its possible edits; a seeded generator picks one. The kinds follow the bug types of HumanEvalPack
(Muennighoff et al., arXiv 2308.07124): wrong operators, values, variables and functions, missing logic.
"""

import ast
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
COMPARISONS |= {"in": "not in", "not in": "in", "is": "is not", "is not": "is"}
OPERATORS = {"+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "//", "&": "|", "|": "&", "<<": ">>", ">>": "<<"}
BOOLEANS = {"and": "or", "or": "and"}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "True": "False", "False": "True"}
METHODS = {
    "append": "extend", "extend": "append", "startswith": "endswith", "endswith": "startswith", "lower": "upper",
    "upper": "lower", "find": "rfind", "rfind": "find", "split": "rsplit", "rsplit": "split", "lstrip": "rstrip",
    "rstrip": "lstrip", "keys": "values", "values": "keys", "add": "discard", "update": "setdefault",
}  # fmt: skip


@dataclass(frozen=True)
class Edit:
    """Replace the characters `start` to `end` of the text by `replacement`."""

    start: int
    end: int
    replacement: str


@dataclass(frozen=True)
class Mutation:
    """The text with one bug, and the kind of the bug."""

    kind: str
    source: str


class Positions:
    """Start and end of the nodes of a parsed text, as indices of its characters."""

    def __init__(self, text: str):
        self.text = text
        self._lines = text.splitlines(keepends=True)
        self._starts = [0]
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """`(start, end)` of a node."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._index(node.lineno, node.col_offset), self._index(node.end_lineno, node.end_col_offset)

    def of(self, node: ast.expr | ast.stmt) -> str:
        start, end = self.span(node)
        return self.text[start:end]

    def _index(self, line: int, column: int) -> int:
        """Index of a character, from its line and its column in UTF-8 bytes, as the syntax tree counts."""
        return self._starts[line - 1] + len(self._lines[line - 1].encode()[:column].decode())


def mutations(source: str, rng: random.Random) -> Iterator[Mutation]:
    """All mutations of `source`, one function, with one bug, in random order, one of each kind in turn. Each parses and differs from `source` as a program."""
    tree = ast.parse(source)
    where = Positions(source)
    kinds = [(kind, edits) for kind, find in MUTATIONS.items() if (edits := list(find(tree, where)))]
    return in_turn(kinds, source, lambda changed: _is_another_program(tree, changed), rng)


def in_turn(
    kinds: list[tuple[str, list[Edit]]], source: str, is_another: Callable[[str], bool], rng: random.Random
) -> Iterator[Mutation]:
    """The mutations by these edits that are another program, in random order, one of each kind in turn."""
    rng.shuffle(kinds)
    waiting = deque(_of_kind(kind, edits, source, is_another, rng) for kind, edits in kinds)
    while waiting:
        mutants = waiting.popleft()
        for mutant in itertools.islice(mutants, 1):
            yield mutant
            waiting.append(mutants)


def _of_kind(
    kind: str, edits: list[Edit], source: str, is_another: Callable[[str], bool], rng: random.Random
) -> Iterator[Mutation]:
    rng.shuffle(edits)
    for edit in edits:
        changed = source[: edit.start] + edit.replacement + source[edit.end :]
        if is_another(changed):
            yield Mutation(kind, changed)


def _is_another_program(tree: ast.Module, changed: str) -> bool:
    try:
        return ast.dump(ast.parse(changed)) != ast.dump(tree)
    except SyntaxError:
        return False


def _between(where: Positions, left: ast.expr, right: ast.expr, table: dict[str, str]) -> Iterator[Edit]:
    """The edit of the operator between two operands, if the table has it and there is nothing else between them."""
    start, end = where.span(left)[1], where.span(right)[0]
    gap = where.text[start:end]
    other = table.get(" ".join(gap.split()))
    if other is not None and "\n" not in gap:
        yield Edit(start, end, gap.replace(gap.strip(), other))


def _comparisons(tree: ast.Module, where: Positions) -> Iterator[Edit]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            yield from _between(where, node.left, node.comparators[0], COMPARISONS)


def _operators(tree: ast.Module, where: Positions) -> Iterator[Edit]:
    for node in ast.walk(tree):
        text_operand = isinstance(node, ast.BinOp) and isinstance(node.left, ast.Constant | ast.JoinedStr)
        if isinstance(node, ast.BinOp) and not text_operand:
            yield from _between(where, node.left, node.right, OPERATORS)


def _booleans(tree: ast.Module, where: Positions) -> Iterator[Edit]:
    for node in ast.walk(tree):
        if isinstance(node, ast.BoolOp) and len(node.values) == 2:
            yield from _between(where, node.values[0], node.values[1], BOOLEANS)


def _off_by_one(tree: ast.Module, where: Positions) -> Iterator[Edit]:
    """`range(1, n)` -> `range(0, n)`, `x[0]` -> `x[1]`, `len(x) - 1` -> `len(x)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare | ast.Subscript | ast.Call | ast.BinOp | ast.Slice | ast.AugAssign):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.Constant) and type(child.value) is int and 0 <= child.value <= 64:
                    yield Edit(*where.span(child), str(child.value + (-1 if child.value > 1 else 1)))
        if isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant) and node.right.value == 1:
            yield Edit(*where.span(node), where.of(node.left))


def _slices(tree: ast.Module, where: Positions) -> Iterator[Edit]:
    """`x[1:]` -> `x[:]`, `x[:-1]` -> `x[:]`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Slice):
            for bound in (node.lower, node.upper):
                if bound is not None:
                    yield Edit(*where.span(bound), "")


def _conditions(tree: ast.Module, where: Positions) -> Iterator[Edit]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.If | ast.While | ast.IfExp):
            continue
        if isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not):
            yield Edit(*where.span(node.test), where.of(node.test.operand))
        elif isinstance(node.test, ast.Name | ast.Call | ast.Attribute | ast.Subscript):
            yield Edit(*where.span(node.test), f"not {where.of(node.test)}")


def _swapped_arguments(tree: ast.Module, where: Positions) -> Iterator[Edit]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and len(node.args) >= 2
            and not any(isinstance(a, ast.Starred) for a in node.args)
        ):
            first, second = node.args[:2]
            (start, first_end), (second_start, end) = where.span(first), where.span(second)
            yield Edit(start, end, where.of(second) + where.text[first_end:second_start] + where.of(first))


def _wrong_variables(tree: ast.Module, where: Positions) -> Iterator[Edit]:
    """Another parameter in the place of a parameter."""
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    names = [argument.arg for argument in function.args.args if argument.arg not in ("self", "cls")]
    for node in ast.walk(ast.Module(function.body, [])):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
            yield from (Edit(*where.span(node), name) for name in names if name != node.id)


def _wrong_functions(tree: ast.Module, where: Positions) -> Iterator[Edit]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in NAMES:
            yield Edit(*where.span(node), NAMES[node.id])
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield Edit(*where.span(node), NAMES[str(node.value)])
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            end = where.span(node.func)[1]
            yield Edit(end - len(node.func.attr), end, METHODS[node.func.attr])


def _missing_returns(tree: ast.Module, where: Positions) -> Iterator[Edit]:
    """A value that is computed but not returned."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Return)
            and isinstance(node.value, ast.expr)
            and not isinstance(node.value, ast.Constant)
        ):
            yield Edit(where.span(node)[0], where.span(node.value)[0], "")


def _missing_statements(tree: ast.Module, where: Positions) -> Iterator[Edit]:
    """A missing line in a block of several lines: a counter that is not increased, a forgotten `continue`."""
    for block in _blocks(tree.body[0]):
        for statement in block:
            is_small = isinstance(statement, ast.AugAssign | ast.Continue | ast.Break)
            is_small |= isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
            if len(block) > 1 and is_small and statement.lineno == statement.end_lineno:
                start = where.text.rfind("\n", 0, where.span(statement)[0]) + 1
                yield Edit(start, where.text.find("\n", start) + 1 or len(where.text), "")


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for inner in ast.walk(node):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(inner, name, None)
            if isinstance(block, list) and block:
                yield block


MUTATIONS: dict[str, Callable[[ast.Module, Positions], Iterator[Edit]]] = {
    "comparison": _comparisons,
    "operator": _operators,
    "boolean operator": _booleans,
    "off by one": _off_by_one,
    "slice": _slices,
    "condition": _conditions,
    "swapped arguments": _swapped_arguments,
    "wrong variable": _wrong_variables,
    "wrong function": _wrong_functions,
    "missing return": _missing_returns,
    "missing statement": _missing_statements,
}
