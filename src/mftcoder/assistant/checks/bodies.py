"""A changed function in a language with braces: another body behind the same head, with no power and no change of state that was not there.

The rules of JavaScript are here, those of the languages with types in compiled.py. What cannot be told from the tree counts as a change of
state: a local name is the function's own only if it was made there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mftcoder.assistant.checks.comments import refuse_new_directives
from mftcoder.assistant.checks.compiled import POWERS, refuse_gains, state_changes
from mftcoder.assistant.checks.names import declared_list, foreign
from mftcoder.assistant.checks.replies import refuse_hidden_code
from mftcoder.assistant.functions import FunctionText
from mftcoder.assistant.rounds import RefusedAnswer
from mftcoder.curation.mining.languages.functions import Found, found_functions
from mftcoder.curation.mining.languages.grammars import COMMENTS, title_of
from mftcoder.curation.mining.languages.trees import function_tree, text_of, tokens, walk
from mftcoder.curation.syntax import Node, parse
from mftcoder.errors import ConfigError
from mftcoder.registry import words

_HARMLESS = words(
    "Math Number String Array Object Map Set JSON BigInt Boolean RegExp Error TypeError RangeError SyntaxError "
    "Int32Array Float64Array Uint8Array Uint32Array parseInt parseFloat isNaN isFinite undefined NaN Infinity "
    "structuredClone"
)
_REACHING = words(
    "constructor __proto__ prototype callee caller mainModule defineProperty defineProperties setPrototypeOf "
    "getPrototypeOf getOwnPropertyDescriptor __defineGetter__ __defineSetter__ __lookupGetter__ __lookupSetter__ "
    "freeze preventExtensions seal random"
)
_NAMES = frozenset({"identifier", "shorthand_property_identifier", "shorthand_property_identifier_pattern"})
_PROPERTIES = frozenset({"property_identifier", "private_property_identifier", "string_fragment"})
_STATEMENTS = frozenset({"import", "meta_property", "debugger_statement", "with_statement", "this", "super"})
_MUTATORS = words(
    "push pop shift unshift splice sort reverse fill copyWithin set add delete clear assign append next write end "
    "call apply bind"
)
_COPIES = words(
    "slice map filter concat split from of keys values entries fromEntries parse toSorted toReversed toSpliced flat "
    "flatMap join trim toLowerCase toUpperCase replace replaceAll substring padStart padEnd repeat match fill "
    "structuredClone"
)
_PLAIN = frozenset({"number", "string", "template_string", "true", "false", "null", "undefined", "unary_expression"})


def changed_body(function: FunctionText, code: str) -> str:
    """The function with the body of the answer. RefusedAnswer if anything else differs."""
    language = function.file.language
    (old, _), (new, shift) = _alone(function, function.text), _alone(function, code)
    if _head(old) != _head(new):
        raise RefusedAnswer("other_signature", f"The signature of {function.name} changed.")
    if all(node.type in COMMENTS for node in new.body.named_children):
        raise RefusedAnswer("empty", f"The body of {function.name} is empty.")
    if tokens(list(walk(old.body))) == tokens(list(walk(new.body))):
        raise RefusedAnswer("no_change", "The code is the same as before.")
    refuse_new_directives(function.text, code, language)
    refuse_hidden_code(code, language)
    if language == "javascript":
        _refuse_powers(function, new)
        _refuse_writes(function, old, new)
    else:
        refuse_gains(function, old, new)
    was, now = function.text.encode(), code.encode()
    body = now[new.body.start_byte - shift : new.body.end_byte - shift]
    made = (was[: old.body.start_byte - shift] + body + was[old.body.end_byte - shift :]).decode()
    _refuse_elsewhere(function, made)
    return made


def require_changeable(function: FunctionText) -> None:
    """ConfigError for a function whose own code changes what lies outside of it: comparisons of its results cannot hold that."""
    if function.file.language in POWERS:
        changed = sorted(state_changes(function, _alone(function, function.text)[0]))
        if changed:
            raise ConfigError(
                f"{function.place}: changes what its caller or the file has ({', '.join(changed[:3])}), which comparisons "
                "of its results do not see. It cannot be changed here"
            )


def _alone(function: FunctionText, code: str) -> tuple[Found, int]:
    """The one function of a text, and how many bytes stand before the text in its tree."""
    language = function.file.language
    owner, _, name = function.name.rpartition(".")
    tree = function_tree(code, language, owner)
    if tree is None:
        raise RefusedAnswer("does_not_parse", f"The code does not parse as {title_of(language)}.")
    found = list(found_functions(tree.root, language))
    if not any(one.name == name for one in found):
        raise RefusedAnswer("function_missing", f"The answer does not define {name}.")
    siblings = found[0].node.parent.named_children if found[0].node.parent is not None else []
    tops = [node for node in siblings if node.type not in COMMENTS | _ATTRIBUTES]
    if len(tops) != 1 or len(found) != 1:
        raise RefusedAnswer("more_than_the_function", f"The answer holds more than {name}. Write this function alone.")
    return found[0], tree.shift


_ATTRIBUTES = frozenset({"attribute_item"})


def _head(found: Found) -> list[bytes]:
    """The tokens around the body, with the attributes above."""
    body = found.body
    around = found.node.parent or found.node
    return tokens([one for one in walk(around) if one.end_byte <= body.start_byte or one.start_byte >= body.end_byte])


def _refuse_elsewhere(function: FunctionText, made: str) -> None:
    language = function.file.language
    before, after = (parse(text, language) for text in (function.file.text, function.placed(made)))
    if before is None or after is None or (after.root_node.has_error and not before.root_node.has_error):
        raise RefusedAnswer("does_not_parse", "With this answer the file does not parse.")
    names = [[(one.owner, one.name) for one in found_functions(tree.root_node, language)] for tree in (before, after)]
    if names[0] != names[1]:
        raise RefusedAnswer("outside", f"The answer changes more than {function.name}.")


def _refuse_powers(function: FunctionText, new: Found) -> None:
    """Refuse names that neither the file has, nor the function declares, nor are known to be harmless."""
    tree = parse(function.file.text, "javascript")
    file = list(walk(tree.root_node)) if tree is not None else []
    known = {text_of(node) for node in file if node.type in _NAMES | _PROPERTIES} | {node.type for node in file}
    outside = {node.id for node in foreign(new.node, "javascript")}
    called = _computed_calls(new) - {text_of(node) for node in file}
    gained = sorted({*called, *_spelled_names(new.body)})
    for node in walk(new.body):
        text = text_of(node)
        is_name = node.id in outside and text not in _HARMLESS
        is_property = node.type in _PROPERTIES and text in _REACHING
        if (is_name or is_property) and text not in known:
            gained.append(text)
        elif node.is_named and node.type in _STATEMENTS and node.type not in known:
            gained.append(node.type)
    if gained:
        raise RefusedAnswer(
            "new_power", f"The code uses {', '.join(sorted(set(gained))[:5])}, which the file did not use."
        )


def _spelled_names(body: Node) -> Iterator[str]:
    """Names that are written with escapes, or put together from texts where they name a property."""
    for node in walk(body):
        if node.type in _NAMES | _PROPERTIES and "\\" in text_of(node):
            yield text_of(node)
        elif node.type in ("subscript_expression", "computed_property_name"):
            index = node.child_by_field_name("index") or node.named_children[-1]
            leaves = [one for one in walk(index) if not one.child_count and one.is_named]
            if index.type != "string" and leaves and all(one.type in _OF_TEXTS for one in leaves):
                yield text_of(index)
        elif node.type == "escape_sequence" and re.match(r"\\[xu]", text_of(node)) and _names_property(node):
            yield text_of(node.parent)


_OF_TEXTS = frozenset({"string_fragment", "escape_sequence"})


def _names_property(escape: Node) -> bool:
    """Whether it stands in the text between `[` and `]`."""
    text = escape.parent
    return (
        text is not None
        and text.parent is not None
        and text.parent.type in ("subscript_expression", "computed_property_name")
    )


def _computed_calls(new: Found) -> set[str]:
    """Calls of what was found under a computed name: it may be a method that changes, or the maker of functions."""
    values = _Scope(new).all_values()
    found = set()
    for node in walk(new.body):
        callee = node.child_by_field_name("function") or node.child_by_field_name("constructor")
        if node.type not in ("call_expression", "new_expression") or callee is None:
            continue
        while callee.type == "parenthesized_expression" and callee.named_child_count:
            callee = callee.named_children[-1]
        held = values.get(text_of(callee), []) if callee.type == "identifier" else [callee]
        if any(_is_computed(one) for one in held):
            found.add(text_of(callee)[:60])
    return found


def _is_computed(value: Node) -> bool:
    index = value.child_by_field_name("index") if value.type == "subscript_expression" else None
    return index is not None and index.type not in ("number", "string")


def _refuse_writes(function: FunctionText, old: Found, new: Found) -> None:
    """Refuse a change of an object that the old code leaves alone, also through another function of the file."""
    added = set(_Scope(new).writes()) - set(_Scope(old).writes())
    tree = parse(function.file.text, "javascript")
    called = {text_of(node) for node in walk(new.body)} - {text_of(node) for node in walk(old.body)}
    others = list(found_functions(tree.root_node, "javascript")) if tree is not None else []
    added |= {write for one in others if one.name in called for write in _Scope(one).writes()}
    if added:
        shown = ", ".join(sorted(added)[:5])
        raise RefusedAnswer(
            "outside", f"The code changes {shown}, which the old code leaves as it is. Copy it into a new name first."
        )


Values = dict[str, list[tuple[Node, int]]]
"""Name -> the values that it gets, each with how deep inside the object it is put: 0 for the object itself."""


@dataclass(frozen=True)
class _Scope:
    """A function whose writes are searched for."""

    found: Found

    def writes(self) -> Iterator[str]:
        """Names from outside that it sets, and objects that it changes and did not make."""
        own, values = set(declared_list(self.found.node, "javascript")), self._values()
        for target, is_object in self._targets():
            if not is_object and target.type == "identifier":
                if text_of(target) not in own:
                    yield text_of(target)
                continue
            root, depth = _root(target, int(is_object))
            name = text_of(root)
            is_own = root.type == "identifier" and name in own and name in values
            if not (_is_new(root, values, depth, set()) if not is_own else _is_made(name, values, depth, set())):
                yield name[:60]

    def all_values(self) -> dict[str, list[Node]]:
        """The values that each name gets directly."""
        found: dict[str, list[Node]] = {}
        for node in walk(self.found.node):
            name = node.child_by_field_name("name") or node.child_by_field_name("left")
            value = node.child_by_field_name("value") or node.child_by_field_name("right")
            if name is not None and value is not None and name.type == "identifier":
                found.setdefault(text_of(name), []).append(value)
        return found

    def _values(self) -> Values:
        """The values that each declared variable gets. Parameters, loop variables and patterns have none: they are not made here."""
        found: Values = {}
        for node in walk(self.found.node):
            name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
            if node.type == "variable_declarator" and name is not None and name.type == "identifier":
                is_loop = value is None and node.parent is not None and node.parent.type == "for_in_statement"
                found.setdefault(text_of(name), []).extend([(value, 0)] if value is not None and not is_loop else [])
            elif node.type == "assignment_expression" or _is_logical(node):
                left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
                if left is not None and right is not None and left.type == "identifier":
                    found.setdefault(text_of(left), []).append((right, 0))
        parameters = self.found.body.parent.child_by_field_name("parameters") if self.found.body.parent else None
        for node in walk(self.found.node):
            if node.type == "formal_parameters" or node == parameters:
                for one in walk(node):
                    found.pop(text_of(one), None)
            elif node.type == "for_in_statement":
                for one in walk(node.child_by_field_name("left") or node):
                    found.pop(text_of(one), None)
            elif node.type == "arrow_function":
                found.pop(text_of(node.child_by_field_name("parameter")), None)
            elif node.type == "assignment_expression":
                left = node.child_by_field_name("left")
                for one in walk(left) if left is not None and left.type.endswith("_pattern") else ():
                    found.pop(text_of(one), None)
        for place, value in self._put():
            root, inside = _root(place, 0)
            if text_of(root) in found:
                found[text_of(root)].append((value, inside))
        return found

    def _put(self) -> Iterator[tuple[Node, Node]]:
        """Values that are put into objects, each with its place."""
        for node in walk(self.found.body):
            left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
            if node.type == "assignment_expression" and left is not None and right is not None:
                if left.type in ("member_expression", "subscript_expression"):
                    yield left, right
            elif node.type == "call_expression":
                callee, given = node.child_by_field_name("function"), node.child_by_field_name("arguments")
                if callee is not None and given is not None and callee.type == "member_expression":
                    is_put = text_of(callee.child_by_field_name("property")) in _MUTATORS
                    yield from ((callee, one) for one in (given.named_children if is_put else ()))

    def _targets(self) -> Iterator[tuple[Node, bool]]:
        """What is assigned to, and objects of methods that change them (True)."""
        for node in walk(self.found.body):
            if node.type in ("assignment_expression", "augmented_assignment_expression"):
                left = node.child_by_field_name("left")
                patterns = walk(left) if left is not None and left.type.endswith("_pattern") else ()
                places = _NAMES | {"member_expression", "subscript_expression"}
                yield from ((one, False) for one in patterns if one.type in places)
                if left is not None and not left.type.endswith("_pattern"):
                    yield left, False
            elif node.type == "update_expression" or (
                node.type == "unary_expression" and text_of(node).startswith("delete")
            ):
                target = node.child_by_field_name("argument")
                if target is not None:
                    yield target, False
            elif node.type == "for_in_statement" and node.child_by_field_name("kind") is None:
                target = node.child_by_field_name("left")
                if target is not None:
                    yield target, False
            elif _method(node) in _MUTATORS:
                yield from self._of_method(node)

    def _of_method(self, member: Node) -> Iterator[tuple[Node, bool]]:
        """The object of a mutating method; of `Object.assign(x, ...)` and `Array.prototype.push.call(x)` the first argument."""
        call = member.parent
        arguments = (
            call.child_by_field_name("arguments") if call is not None and call.type == "call_expression" else None
        )
        holder = member.child_by_field_name("object")
        is_static = _method(member) in ("assign", "call", "apply", "bind")
        if is_static and arguments is not None and arguments.named_child_count:
            yield arguments.named_children[0], True
        elif holder is not None:
            yield holder, True


def _method(node: Node) -> str:
    """`push` of `a.push` and of `a["push"]`."""
    if node.type == "subscript_expression":
        index = node.child_by_field_name("index")
        return text_of(index)[1:-1] if index is not None and index.type == "string" else ""
    return text_of(node.child_by_field_name("property")) if node.type == "member_expression" else ""


def _is_logical(node: Node) -> bool:
    """`a ??= b`, after which `a` may be `b`."""
    operator = text_of(node.child_by_field_name("operator"))
    return node.type == "augmented_assignment_expression" and operator in ("??=", "||=", "&&=")


def _root(node: Node, depth: int) -> tuple[Node, int]:
    """`a` of `a.b[c].d()`, and how deep below it the change is."""
    while node.type in ("member_expression", "subscript_expression", "parenthesized_expression"):
        inner = node.child_by_field_name("object") or next(iter(node.named_children), None)
        if inner is None:
            return node, depth
        depth += node.type != "parenthesized_expression"
        node = inner
    return node, depth


def _is_made(name: str, values: Values, depth: int, seen: set[tuple[str, int]]) -> bool:
    """Whether a local name stands only for objects that the function made, down to a depth."""
    if (name, depth) in seen:  # it is being looked at: another value of it decides
        return True
    seen.add((name, depth))
    return name in values and all(_is_new(value, values, depth - inside, seen) for value, inside in values[name])


def _is_new(value: Node, values: Values, depth: int, seen: set[tuple[str, int]]) -> bool:
    """Whether an expression makes a new object, down to a depth."""
    kind = value.type
    if kind in _PLAIN or depth <= 0:
        return True
    if kind in ("parenthesized_expression", "ternary_expression", "binary_expression", "array", "object", "pair"):
        parts = [one for one in value.named_children if one.type not in COMMENTS and one.type not in _PROPERTIES]
        parts = parts[1:] if kind == "ternary_expression" else parts
        deeper = depth - 1 if kind in ("array", "object") else depth
        return all(_is_new(one, values, deeper, seen) for one in parts)
    if kind in ("identifier", "shorthand_property_identifier"):
        return text_of(value) in ("undefined", "NaN") or _is_made(text_of(value), values, depth, seen)
    if kind == "spread_element":
        return depth <= 0 or _is_new(value.named_children[0], values, depth, seen)
    if kind == "new_expression":
        return depth <= 1 or not re.search(r"\((?!\s*\))", text_of(value))
    if kind == "arrow_function":
        body = value.child_by_field_name("body")
        return body is not None and body.type != "statement_block" and _is_new(body, values, depth, seen)
    if kind != "call_expression":
        return False
    arguments = value.child_by_field_name("arguments")
    given = arguments.named_children if arguments is not None else []
    called = value.child_by_field_name("function")
    name = text_of(called.child_by_field_name("property") or called) if called is not None else ""
    if name == "structuredClone" or text_of(called) == "JSON.parse":
        return True
    if name == "fill" and called is not None:  # of a new array: `fill` gives the array itself
        holder = called.child_by_field_name("object")
        return (
            holder is not None
            and _is_new(holder, values, 1, seen)
            and all(_is_new(one, values, depth - 1, seen) for one in given)
        )
    if name not in _COPIES:
        return False
    makers = [one for one in given if one.type == "arrow_function"]
    return depth <= 1 or (name in ("map", "from") and bool(makers) and _is_new(makers[-1], values, depth - 1, seen))
