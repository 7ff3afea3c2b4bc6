"""Put one typical bug into a function of a language with braces, as mutations.py does for Python.

The bugs keep to what still compiles where the syntax shows it: in languages with types, a wrong variable or swapped arguments are
parameters of one type. A mutant parses and differs in more than layout and comments.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from mftcoder.curation.mining.languages.grammars import COMMENTS, STATEMENT_LISTS
from mftcoder.curation.mining.languages.trees import FunctionTree, function_tree, text_of, walk
from mftcoder.curation.mining.mutations import BOOLEANS, COMPARISONS, OPERATORS, Edit, Mutation, in_turn
from mftcoder.curation.syntax import Node
from mftcoder.registry import words

_COMPARISONS = {key: value for key, value in COMPARISONS.items() if not key[0].isalpha()} | {"===": "!==", "!==": "==="}
_OPERATORS = OPERATORS | {">>>": "<<"}
_BOOLEANS = {"&&": "||", "||": "&&"}
assert len(_BOOLEANS) == len(BOOLEANS)
_INTEGERS = frozenset({"decimal_integer_literal", "number", "int_literal", "integer_literal", "number_literal"})
_NEAR_INTEGERS = words(
    "binary_expression argument_list arguments array_access subscript_expression subscript_argument_list "
    "index_expression slice_expression variable_declarator range_expression init_declarator assignment_expression "
    "augmented_assignment_expression compound_assignment_expr"
)
_CONDITIONS = frozenset({"if_statement", "while_statement", "if_expression", "while_expression", "for_statement"})
_SIMPLE = words(
    "identifier call_expression method_invocation field_access member_expression field_expression selector_expression "
    "subscript_expression index_expression array_access"
)
_CALLS = frozenset({"call_expression", "method_invocation"})
_PAIRS = (
    "min max,startsWith endsWith,HasPrefix HasSuffix,starts_with ends_with,toLowerCase toUpperCase,ToLower ToUpper,"
    "to_lowercase to_uppercase,indexOf lastIndexOf,Index LastIndex,find rfind,push unshift,shift pop,some every,"
    "isEmpty isPresent,TrimLeft TrimRight,TrimPrefix TrimSuffix,trim_start trim_end,trimStart trimEnd,is_some is_none,"
    "is_ok is_err,any all,first last,anyMatch allMatch,floor ceil,front back,find_first_of find_last_of,begin end,"
    "push_back push_front,addFirst addLast,getFirst getLast,checked_add checked_sub,wrapping_add wrapping_sub,isalpha isdigit"
)
_CALLED: dict[str, str] = {}
for _pair in _PAIRS.split(","):
    _one, _other = _pair.split()
    _CALLED |= {_one: _other, _other: _one}
_PARAMETERS = words("formal_parameter parameter_declaration optional_parameter_declaration parameter spread_parameter")
_SMALL = frozenset({"break_statement", "continue_statement", "inc_statement", "dec_statement"})
_SMALL_EXPRESSIONS = words(
    "update_expression augmented_assignment_expression compound_assignment_expr call_expression method_invocation "
    "break_expression continue_expression"
)


@dataclass(frozen=True)
class _Place:
    """A function in which bugs are searched for."""

    tree: FunctionTree
    language: str

    def of(self, node: Node) -> str:
        return text_of(node)

    def replace(self, node: Node, text: str) -> Edit:
        return Edit(*self.tree.span(node), text)

    @cached_property
    def nodes(self) -> list[Node]:
        return list(walk(self.tree.body)) if self.tree.body is not None else []

    @cached_property
    def parameters(self) -> dict[str, str]:
        """Name -> type of the function's parameters. In JavaScript all have the type ""."""
        return dict(_parameters(self))


def mutations(source: str, language: str, owner: str, rng: random.Random) -> Iterator[Mutation]:
    """All mutations of the function with one bug, in random order, one of each kind in turn."""
    tree = function_tree(source, language, owner)
    if tree is None:
        return
    place = _Place(tree, language)
    kinds = [(kind, edits) for kind, find in MUTATIONS.items() if (edits := list(find(place)))]

    def is_another(changed: str) -> bool:
        other = function_tree(changed, language, owner)
        return other is not None and other.tokens != tree.tokens

    yield from in_turn(kinds, source, is_another, rng)


def _binary(place: _Place, table: dict[str, str]) -> Iterator[tuple[Node, Edit]]:
    for node in place.nodes:
        operator = node.child_by_field_name("operator") if node.type == "binary_expression" else None
        if operator is not None and place.of(operator) in table:
            yield node, place.replace(operator, table[place.of(operator)])


def _exchanged(table: dict[str, str]) -> Callable[[_Place], Iterator[Edit]]:
    return lambda place: (edit for _, edit in _binary(place, table))


def _operators(place: _Place) -> Iterator[Edit]:
    """Texts have no other operator than `+`, and in C++ a shift is mostly output."""
    for node, edit in _binary(place, _OPERATORS):
        is_text = any("string" in child.type for child in node.named_children)
        if not is_text and not (place.language == "cpp" and edit.replacement in ("<<", ">>")):
            yield edit


def _off_by_one(place: _Place) -> Iterator[Edit]:
    for node in place.nodes:
        parent = node.parent.type if node.parent is not None else ""
        if node.type in _INTEGERS and parent in _NEAR_INTEGERS and re.fullmatch(r"\d|[1-5]\d|6[0-4]", place.of(node)):
            number = int(place.of(node))
            yield place.replace(node, str(number + (-1 if number > 1 else 1)))
    for node, _ in _binary(place, {"+": "", "-": ""}):
        left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
        if left is not None and right is not None and place.of(right) == "1":
            yield place.replace(node, place.of(left))


def _slices(place: _Place) -> Iterator[Edit]:
    """Go's `x[1:]` -> `x[:]`."""
    for node in place.nodes:
        for bound in ("start", "end") if node.type == "slice_expression" else ():
            found = node.child_by_field_name(bound)
            if found is not None:
                yield place.replace(found, "")


def _conditions(place: _Place) -> Iterator[Edit]:
    for node in place.nodes:
        test = node.child_by_field_name("condition") if node.type in _CONDITIONS else None
        while test is not None and test.type in ("parenthesized_expression", "condition_clause"):
            test = test.child_by_field_name("value") or next(iter(test.named_children), None)
        if test is None:
            continue
        if test.type == "unary_expression" and place.of(test).startswith("!"):
            yield place.replace(test, place.of(test)[1:].lstrip())
        elif test.type in _SIMPLE:
            yield place.replace(test, f"!{place.of(test)}")


def _swapped_arguments(place: _Place) -> Iterator[Edit]:
    for node in place.nodes:
        arguments = node.child_by_field_name("arguments") if node.type in _CALLS else None
        given = [child for child in arguments.named_children if child.type not in COMMENTS] if arguments else []
        if len(given) < 2 or any("spread" in child.type for child in given):
            continue
        first, second = given[:2]
        if place.language == "javascript" or _same_type(place, first, second):
            (start, first_end), (second_start, end) = place.tree.span(first), place.tree.span(second)
            between = place.tree.source[first_end:second_start]
            yield Edit(start, end, place.of(second) + between + place.of(first))


def _same_type(place: _Place, first: Node, second: Node) -> bool:
    types = place.parameters
    known = place.of(first) in types and place.of(second) in types
    return known and types[place.of(first)] == types[place.of(second)]


def _wrong_variables(place: _Place) -> Iterator[Edit]:
    """Another parameter of the same type in the place of a parameter."""
    for node in place.nodes:
        name = place.of(node) if node.type == "identifier" else ""
        if name in place.parameters and not _is_written(node):
            others = (n for n, kind in place.parameters.items() if n != name and kind == place.parameters[name])
            yield from (place.replace(node, other) for other in others)


def _is_written(node: Node) -> bool:
    """Whether an identifier is assigned to, declared, or the name of something called or named."""
    parent = node.parent
    if parent is None or "declarat" in parent.type or "parameter" in parent.type or parent.type == "token_tree":
        return True
    fields = ("left", "name", "field", "function", "label", "key")
    return any(parent.child_by_field_name(field) == node for field in fields if "binary" not in parent.type)


def _parameters(place: _Place) -> Iterator[tuple[str, str]]:
    for node in place.tree.nodes:
        if node is place.tree.body or (place.tree.body and node.start_byte >= place.tree.body.start_byte):
            return
        if node.type in _PARAMETERS:
            names = [child for child in walk(node) if child.type == "identifier"]
            kind = place.of(node)
            for name in names:
                kind = re.sub(rf"\b{re.escape(place.of(name))}\b", "", kind)
            yield from ((place.of(name), " ".join(kind.replace(",", " ").split())) for name in names)
        elif node.type == "identifier" and node.parent is not None and node.parent.type == "formal_parameters":
            yield place.of(node), ""


def _wrong_functions(place: _Place) -> Iterator[Edit]:
    for node in place.nodes:
        if node.type in ("true", "false"):
            yield place.replace(node, "false" if node.type == "true" else "true")
        name = _called_name(node) if node.type in _CALLS else None
        if name is not None and place.of(name) in _CALLED:
            yield place.replace(name, _CALLED[place.of(name)])


def _called_name(call: Node) -> Node | None:
    """The last name of what is called: `min` of `std::min(a, b)` and of `a.min(b)`."""
    target = call.child_by_field_name("name") or call.child_by_field_name("function")
    while target is not None and target.named_child_count:
        target = target.named_children[-1]
    return target


def _missing_returns(place: _Place) -> Iterator[Edit]:
    """A value that is computed but not returned. Only JavaScript runs such a function."""
    for node in place.nodes if place.language == "javascript" else ():
        if node.type == "return_statement" and node.named_child_count == 1:
            start, _ = place.tree.span(node)
            yield Edit(start, place.tree.span(node.named_children[0])[0], "")


def _missing_statements(place: _Place) -> Iterator[Edit]:
    """A missing line in a block of several lines: a counter that is not increased, a forgotten `continue`."""
    source = place.tree.source
    for node in place.nodes:
        for child in node.named_children if node.type in STATEMENT_LISTS and node.named_child_count > 1 else ():
            start, end = place.tree.span(child)
            start = source.rfind("\n", 0, start) + 1
            end = source.find("\n", end) + 1 or len(source)
            if _is_small(child, place) and "\n" not in source[start : end - 1]:
                yield Edit(start, end, "")


def _is_small(node: Node, place: _Place) -> bool:
    if node.type in _SMALL:
        return True
    if node.type == "assignment_statement":  # Go's `x += 1`
        return "=" in place.of(node) and place.of(node).split("=")[0][-1:] in tuple("+-*/%|&^")
    inner = node.named_children[0] if node.type == "expression_statement" and node.named_children else None
    if inner is not None and inner.type == "assignment_expression":
        return place.of(inner).split("=")[0][-1:] in tuple("+-*/%|&^")
    return inner is not None and inner.type in _SMALL_EXPRESSIONS


MUTATIONS: dict[str, Callable[[_Place], Iterator[Edit]]] = {
    "comparison": _exchanged(_COMPARISONS),
    "operator": _operators,
    "boolean operator": _exchanged(_BOOLEANS),
    "off by one": _off_by_one,
    "slice": _slices,
    "condition": _conditions,
    "swapped arguments": _swapped_arguments,
    "wrong variable": _wrong_variables,
    "wrong function": _wrong_functions,
    "missing return": _missing_returns,
    "missing statement": _missing_statements,
}
