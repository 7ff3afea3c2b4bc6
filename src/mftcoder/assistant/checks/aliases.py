"""What a function of Go or Java changes that it did not make. What cannot be told from the tree counts as a change.

A local name is the function's own if every value that it gets, and everything that is put into it, is clean: made here, or a number or a
text. A parameter is never its own, but what is read from a list or map of numbers and texts is clean.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mftcoder.assistant.checks.forms import FORMS, GO_SCALAR, levels_of
from mftcoder.assistant.checks.names import declared_list
from mftcoder.curation.mining.languages.functions import Found
from mftcoder.curation.mining.languages.trees import text_of, walk
from mftcoder.curation.syntax import Node
from mftcoder.registry import words

_LITERALS = re.compile(
    r".*literal|true|false|nil|iota|null|character|string|.*_type|type_identifier|lambda_expression|func_literal"
)
_PARTS = words(
    "parenthesized_expression unary_expression ternary_expression array_initializer literal_element composite_literal "
    "literal_value keyed_element array_creation_expression expression_list variadic_argument dimensions_expr "
    "dimensions generic_type type_arguments switch_expression"
)
_RESULTS = frozenset({"binary_expression", "instanceof_expression", "update_expression"})


def outer_writes(found: Found, others: Sequence[Found], root: Node, language: str) -> set[str]:
    """The names of what a function changes that it did not make, itself or through functions of its file."""
    return {name for name, _ in _Body(found, tuple(others), root, language, frozenset()).writes()}


@dataclass(frozen=True)
class _Source:
    """A value that a name gets, or the values inside of it: those of a list that a loop goes through."""

    node: Node
    is_element: bool = False


class _Body:
    """One function, and the functions of its file that it may call. `entered` are those that are being looked at."""

    def __init__(self, found: Found, others: tuple[Found, ...], root: Node, language: str, entered: frozenset[int]):
        self.found, self.others, self.root, self.language = found, others, root, language
        self.entered, self.forms = entered | {found.node.id}, FORMS[language]
        given = list(self._parameters())
        known = Counter(declared_list(found.node, language))  # of a name that is declared twice, no type is known
        self.parameters = {name: kind if known[name] == 1 else "" for name, kind in given}
        self.twice = {name for name, count in known.items() if count > 1}
        self.types: dict[str, str] = {}
        self.globals = dict(_globals(root))
        names = set(declared_list(found.body, language)) - self.parameters.keys()
        self.inner: dict[str, list[_Source]] = {name: [] for name in names}
        self._fill()
        self.own = frozenset(self.inner)
        while (
            left := frozenset(name for name in self.own if all(map(self._is_clean_source, self.inner[name])))
        ) != self.own:
            self.own = left

    def _parameters(self) -> Iterator[tuple[str, str]]:
        """Each parameter with its type, also of functions inside of it; "" for an unknown type. None of them is made here."""
        for node in walk(self.found.node):
            kind = text_of(node.child_by_field_name("type"))
            names = node.children_by_field_name("name")
            if node.type in ("variadic_parameter_declaration", "spread_parameter"):
                yield from ((text_of(one), f"...{kind}") for one in names or node.named_children[-1:])
            elif node.type in ("parameter_declaration", "formal_parameter"):
                yield from ((text_of(one), kind) for one in names)
            elif node.type in ("catch_formal_parameter", "resource", "instanceof_expression"):
                yield from ((text_of(one), "") for one in names)
            elif node.type == "inferred_parameters":
                yield from ((text_of(one), "") for one in node.named_children)
            elif node.type == "lambda_expression":
                given = node.child_by_field_name("parameters")
                yield from [(text_of(given), "")] if given is not None and given.type == "identifier" else []

    def _fill(self) -> None:
        """Collect what each name of the body gets, and what is put into it."""
        for node in walk(self.found.body):
            for target, source in self._values(node):
                name = text_of(self._base(target))
                if name in self.inner:
                    self.inner[name].append(source)

    def _values(self, node: Node) -> Iterator[tuple[Node, _Source]]:
        """Pairs of a place and what goes there. A number that is counted up stays a number."""
        field = node.child_by_field_name
        if node.type in ("short_var_declaration", "assignment_statement", "assignment_expression"):
            targets, values = _items(field("left")), _items(field("right"))
            if node.type == "short_var_declaration" or text_of(field("operator")) == "=":
                pairs = values if len(values) == len(targets) else values[:1] * len(targets)
                yield from ((target, _Source(value)) for target, value in zip(targets, pairs, strict=False))
        elif node.type in ("range_clause", "enhanced_for_statement"):
            targets, value = _items(field("left") or field("name")), field("right") or field("value")
            if node.type == "range_clause" and value is not None and self._level(value):
                targets = targets[1:]  # the first one counts
            else:
                self.types |= {text_of(one): text_of(field("type")) for one in targets}
            yield from ((target, _Source(value, True)) for target in targets if value is not None)
        elif node.type in ("var_spec", "const_spec", "variable_declarator"):
            names, values = node.children_by_field_name("name"), _items(field("value"))
            kind = field("type") or (node.parent.child_by_field_name("type") if node.parent is not None else None)
            self.types |= {
                text_of(name): text_of(kind) + text_of(field("dimensions")) for name in names if kind is not None
            }
            pairs = values if len(values) == len(names) else values[:1] * len(names)
            yield from ((name, _Source(value)) for name, value in zip(names, pairs, strict=False))
        yield from ((target, _Source(value)) for target, given in self._calls(node) for value in given)

    def _level(self, node: Node, steps: int = 0) -> int | None:
        """How many lists or maps lie around the numbers and texts of a value: 0 for such a value itself; None if this is not known."""
        kind, field = node.type, node.child_by_field_name
        if steps > 20:
            return None
        if kind == "identifier":
            return self._level_of_name(text_of(node), steps)
        if kind == "parenthesized_expression" and node.named_child_count == 1:
            return self._level(node.named_children[0], steps + 1)
        if kind in ("index_expression", "array_access"):
            holder = field("operand") or field("array")
            level = self._level(holder, steps + 1) if holder is not None else None
            return None if level is None else max(0, level - 1)
        if kind == "slice_expression":
            holder = field("operand")
            return self._level(holder, steps + 1) if holder is not None else None
        if kind == "method_invocation":
            name, holder = self._called(node)
            level = self._level(holder, steps + 1) if holder is not None and name in _TAKERS else None
            return None if level is None else max(0, level - 1)
        return 0 if kind in _RESULTS or "int_literal" in kind or "integer_literal" in kind or "string" in kind else None

    def _level_of_name(self, name: str, steps: int) -> int | None:
        known = self.parameters.get(name) or self.types.get(name)
        if name not in self.parameters and name not in self.inner:
            known = self.globals.get(name, "")
            return levels_of(known, self.language)
        if name in self.parameters or (known and known != "var" and name not in self.twice):
            return levels_of(known or "", self.language)
        if name in self.twice:
            return None
        levels = {
            None if (level := self._level(one.node, steps + 1)) is None else level - one.is_element
            for one in self.inner.get(name, ())
        }
        return max(0, next(iter(levels)) or 0) if len(levels) == 1 and None not in levels else None

    def _calls(self, node: Node) -> Iterator[tuple[Node, list[Node]]]:
        """The object that a call of the library changes, and what goes into it."""
        if node.type not in ("call_expression", "method_invocation"):
            return
        given = _arguments(node)
        name, holder = self._called(node)
        number = self.forms.changes_argument.get(name)
        if number is not None and (holder is None or not self._is_mine(holder)) and len(given) > number:
            yield given[number], [one for one in given if one != given[number]]
        elif holder is not None and (name in self.forms.mutators or self._is_unknown_method(name, holder)):
            yield holder, given

    def _is_unknown_method(self, name: str, holder: Node) -> bool:
        """A method of a variable of a Go file: what it does cannot be told."""
        is_known = name in _READING or any(one.name == name for one in self.others)
        return self.language == "go" and not is_known and text_of(self._base(holder)) in self.globals

    def _called(self, call: Node) -> tuple[str, Node | None]:
        """The name of what is called, and the object before it."""
        target = call.child_by_field_name("function")
        if target is None:
            return text_of(call.child_by_field_name("name")), call.child_by_field_name("object")
        if target.type == "selector_expression":
            return text_of(target.child_by_field_name("field")), target.child_by_field_name("operand")
        return text_of(target), None

    def _base(self, node: Node) -> Node:
        """`a` of `a[i].b`, of `*a` and of `a.get(i)`."""
        while True:
            field = self.forms.places.get(node.type)
            inner = node.child_by_field_name(field) if field else None
            if node.type in ("parenthesized_expression", "unary_expression"):
                inner = next(iter(node.named_children), None)
            elif node.type in ("method_invocation", "call_expression"):
                inner = self._called(node)[1]
            if inner is None:
                return node
            node = inner

    def writes(self) -> Iterator[tuple[str, bool]]:
        """What is changed that the function did not make, and whether its caller gave it."""
        for node in walk(self.found.body):
            targets: list[Node] = []
            if node.type in ("assignment_statement", "assignment_expression"):
                targets = _items(node.child_by_field_name("left"))
            elif node.type in ("inc_statement", "dec_statement", "update_expression"):
                targets = node.named_children[:1]
            elif node.type == "range_clause" and not any(one.type == ":=" for one in node.children):
                targets = _items(node.child_by_field_name("left"))
            yield from (self._named(one) for one in targets if not self._may_set(one))
            yield from (self._named(one) for one, _ in self._calls(node) if not self._is_own(one))
            if node.type in ("call_expression", "method_invocation"):
                yield from self._through(node)
            elif node.type == "identifier" and self._is_function_value(node):
                yield from self._of_value(text_of(node))

    def _is_function_value(self, name: Node) -> bool:
        """Whether it names a function without calling it: whoever gets it may call it with anything."""
        parent, text = name.parent, text_of(name)
        if parent is None or text in self.inner or text in self.parameters:
            return False
        if self.language == "java":
            return parent.type == "method_reference"
        return parent.type != "call_expression" or parent.child_by_field_name("function") != name

    def _of_value(self, name: str) -> Iterator[tuple[str, bool]]:
        for one in self.others:
            if one.name == name and one.node.id not in self.entered:
                other = _Body(one, self.others, self.root, self.language, self.entered)
                yield from ((changed, False) for changed, _ in other.writes())

    def _may_set(self, target: Node) -> bool:
        name = text_of(target)
        if target.type in ("identifier", "blank_identifier"):
            return name == "_" or name in self.inner or name in self.parameters
        return self._is_own(target)

    def _is_own(self, place: Node) -> bool:
        base = self._base(place)
        return text_of(base) in self.own if base.type == "identifier" else self._is_clean(base)

    def _named(self, place: Node) -> tuple[str, bool]:
        name = text_of(self._base(place))
        return name[:60], name in self.parameters or name in self.inner

    def _through(self, call: Node) -> Iterator[tuple[str, bool]]:
        """What functions of the file change, where it is not made by this one."""
        name, holder = self._called(call)
        given = [*_arguments(call), *([holder] if holder is not None else [])]
        for one in self.others:
            if one.name == name and one.node.id not in self.entered:
                other = _Body(one, self.others, self.root, self.language, self.entered)
                is_own = all(self._is_clean(value) for value in given if text_of(value) != self.found.owner)
                yield from ((changed, False) for changed, is_given in other.writes() if not (is_given and is_own))

    def _is_clean_source(self, source: _Source) -> bool:
        level = self._level(source.node)
        return (source.is_element and level is not None and level <= 1) or self._is_clean(source.node)

    def _is_clean(self, node: Node) -> bool:
        """Whether nobody else can see a change of this value."""
        kind, text = node.type, text_of(node)
        if self._level(node) == 0:
            return True
        if kind in ("identifier", "blank_identifier"):
            return text in self.own or text in ("_", "nil", "true", "false")
        if kind == "unary_expression" and text.startswith("&"):
            return self._is_own(node)
        if kind in _PARTS:
            return all(map(self._is_clean_part, node.named_children))
        if kind in _RESULTS or _LITERALS.fullmatch(kind):
            return True
        if kind in ("call_expression", "method_invocation", "object_creation_expression", "type_conversion_expression"):
            return self._is_clean_call(node)
        inner = node.child_by_field_name(self.forms.places[kind]) if kind in self.forms.places else None
        return inner is not None and self._is_clean(inner)

    def _is_clean_part(self, node: Node) -> bool:
        parent = node.parent
        if parent is not None and parent.type == "keyed_element" and parent.child_by_field_name("key") == node:
            return True
        return self._is_clean(node) or (
            parent is not None and parent.type == "variadic_argument" and self._level(node) == 1
        )

    def _is_clean_call(self, call: Node) -> bool:
        name, holder = self._called(call)
        given = _arguments(call)
        if call.type == "object_creation_expression":
            name = text_of(call.child_by_field_name("type")).split("<")[0]
            return all(self._is_clean(one) or (name in self.forms.makers and self._level(one) == 1) for one in given)
        if call.type == "type_conversion_expression":  # `[]byte(text)` copies
            return all(map(self._is_clean, call.named_children[1:]))
        if holder is not None and self._is_mine(holder):  # a method of a value
            base = self._base(holder)
            is_copied = name not in self.forms.views and self._level(base) in (0, 1)
            return (is_copied or self._is_clean(base)) and all(map(self._is_clean, given))
        if re.fullmatch(GO_SCALAR, name) or text_of(holder) in self.forms.libraries:
            return True
        if name in self.forms.makers and holder is not None and self.language == "java":
            return all(self._is_clean(one) or self._level(one) == 1 for one in given)
        if (name in self.forms.makers and holder is None) or name in _GO_SEARCHES:
            return True
        called = [one for one in self.others if one.name == name]
        is_known = bool(called) or (name in _BUILDERS and holder is not None) or (name == "append" and holder is None)
        return is_known and all(map(self._is_clean_part, given)) and not self._gives_globals(called)

    def _is_mine(self, holder: Node) -> bool:
        base = self._base(holder)
        return base.type != "identifier" or text_of(base) in self.inner or text_of(base) in self.parameters

    def _gives_globals(self, called: Sequence[Found]) -> bool:
        """Whether functions could give out an object of the file."""
        names = {text_of(node) for one in called for node in walk(one.body) if node.type == "identifier"}
        return any(levels_of(self.globals.get(name, "int"), self.language) != 0 for name in names)


_READING = words(
    "MatchString FindString FindAllString FindStringSubmatch FindStringIndex ReplaceAllString Split Len Error"
)
_TAKERS = words("get getOrDefault getFirst getLast peek peekFirst peekLast element first last charAt")
_BUILDERS = frozenset({"of", "ofEntries", "asList", "copyOf", "entry"})
_GO_SEARCHES = frozenset({"SearchInts", "SearchStrings", "SearchFloat64s", "Search"})


def _items(node: Node | None) -> list[Node]:
    if node is None:
        return []
    return node.named_children if node.type == "expression_list" else [node]


def _arguments(call: Node) -> list[Node]:
    given = call.child_by_field_name("arguments")
    return [one for one in given.named_children if "comment" not in one.type] if given is not None else []


def _globals(root: Node) -> Iterator[tuple[str, str]]:
    """Variables and constants of a file, each with its type: of Go its package's, of Java the fields of its classes."""
    for node in walk(root):
        kind = node.child_by_field_name("type")
        parents = [node.parent, node.parent.parent if node.parent is not None else None]
        if node.type in ("var_spec", "const_spec") and any(
            one is not None and one.parent is not None and one.parent.type == "source_file" for one in parents
        ):
            known = text_of(kind) or ("int" if node.type == "const_spec" else "")
            yield from ((text_of(name), known) for name in node.children_by_field_name("name"))
        elif node.type == "field_declaration" and kind is not None:
            names = (one.child_by_field_name("name") for one in node.children_by_field_name("declarator"))
            yield from ((text_of(name), text_of(kind)) for name in names if name is not None)
