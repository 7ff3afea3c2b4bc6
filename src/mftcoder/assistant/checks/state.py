"""What a function changes outside of itself: names and objects of its module, and objects that its caller passed.

Objects are followed through local names (`c = CACHE; c[key] = value`), bound methods (`add = SEEN.add`), loops, nested functions and
functions of the same file. Where the code leaves it open, the object counts as changed. Not followed: what functions of other modules
do, and objects that are hidden in new ones (`Box(CACHE)`).
"""

import ast
import builtins
from collections.abc import Iterable, Iterator

from mftcoder.registry import words

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
_MUTATORS = words(
    "append extend insert remove pop clear update setdefault popitem add discard sort reverse appendleft popleft "
    "extendleft rotate subtract move_to_end difference_update intersection_update symmetric_difference_update write "
    "writelines send put put_nowait get_nowait close seek truncate set seed cache_clear throw"
)
_WRITERS = words(
    "heappush heappop heapify heapreplace heappushpop insort insort_left insort_right setitem delitem shuffle next "
    "iadd iconcat ior iand isub imul ixor"
)
"""Functions that change their first argument."""
_PASS_ON = words("next max min reversed zip enumerate map filter getattr type super")
"""Builtins whose result is, or holds, what they were given. Other builtins give something new."""
_COPIES = frozenset({"list", "tuple", "set", "dict", "sorted", "frozenset", "iter"})
_FRESH = words(
    "copy split rsplit splitlines partition strip lstrip rstrip format join replace lower upper title casefold encode "
    "decode match search fullmatch findall finditer sub subn count index find startswith endswith translate isoformat"
)
"""Methods whose result is a new object."""
_DISPLAYS = (ast.List, ast.ListComp, ast.Set, ast.SetComp, ast.Dict, ast.DictComp)

Objects = frozenset[str]
Reach = tuple[Objects, Objects]
"""The outer objects that a value may be, and those that it may be or hold."""
_NOTHING: Objects = frozenset()


def outer_writes(function: FunctionNode, whole: ast.Module, *, is_method: bool = False) -> set[str]:
    """What the function changes, in words such as `CACHE[...]`, `SEEN.add()`, `Box.size`, `the argument items`."""
    return set(_Function(function, _File(whole), is_method=is_method).writes())


class _File:
    """What functions need to know of the file that they stand in."""

    def __init__(self, tree: ast.Module):
        self.functions = {node.name: node for node in tree.body if isinstance(node, FunctionNode)}
        imports = [alias for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        self.modules = frozenset(alias.asname or alias.name.split(".")[0] for alias in imports)
        self.values: dict[str, ast.expr] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                self.values |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
        self._effects: dict[str, tuple[Objects, Objects]] = {}

    def effects(self, name: str) -> tuple[Objects, Objects]:
        """What a function of the file changes in the module, and the objects of the module that it returns."""
        if name not in self._effects:
            self._effects[name] = _NOTHING, _NOTHING  # for a function that calls itself
            function = _Function(self.functions[name], self)
            self._effects[name] = _of_module(function.writes()), _of_module(function.returned())
        return self._effects[name]

    def is_plain(self, name: str) -> bool:
        """Whether it is a builtin, a module, or a variable that holds a number or a text."""
        if name in self.values:
            return isinstance(self.values[name], ast.Constant | ast.JoinedStr | ast.UnaryOp)
        return name in self.modules or (hasattr(builtins, name) and name not in self.functions)


def _of_module(objects: Iterable[str]) -> Objects:
    return frozenset(one for one in objects if not one.startswith("the argument "))


class _Function:
    """A function of a file, and what its local names may stand for."""

    def __init__(self, node: FunctionNode, file: _File, *, is_method: bool = False):
        self.file = file
        self.nodes = [inner for part in node.body for inner in ast.walk(part)]
        self.parameters = _parameters(node, is_method)
        self.rebound = _rebound(node)
        self.own = frozenset({*self.parameters, *_names(self.nodes)})
        self.locals: dict[str, Reach] = dict.fromkeys(self.own, (_NOTHING, _NOTHING))
        self._follow_bindings()

    def returned(self) -> Objects:
        """The outer objects that it may return."""
        results = [node.value for node in self.nodes if isinstance(node, ast.Return) and node.value is not None]
        return _union(map(self._reach, results))[0]

    def writes(self) -> Iterator[str]:
        """What it changes."""
        for node in self.nodes:
            if isinstance(node, ast.Global):
                yield from node.names
            elif isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load):
                what = f".{node.attr}" if isinstance(node, ast.Attribute) else "[...]"
                yield from self._changed(node.value, what)
            elif isinstance(node, ast.Attribute) and node.attr in _MUTATORS and not self._is_module(node.value):
                yield from self._changed(node.value, f".{node.attr}()")
            elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                yield from self._grown(node.target, node.value)
            elif isinstance(node, ast.Call) and node.args and self._writes_first(node.func):
                yield from self._changed(node.args[0], f" by {ast.unparse(node.func)}()")
            elif isinstance(node, ast.Name) and node.id in self.file.functions and node.id not in self.own:
                yield from self.file.effects(node.id)[0]

    def _changed(self, value: ast.expr, what: str) -> Iterator[str]:
        for one in sorted(self._reach(value)[0]):
            yield one if one.startswith("the argument ") else f"{one}{what}"

    def _grown(self, name: ast.Name, value: ast.expr) -> Iterator[str]:
        """`c += [x]` changes the list that `c` stands for. Of numbers it does not."""
        for one in self._changed(name, "[...]"):
            held = self.file.values.get(one.removesuffix("[...]"))
            if isinstance(value, _DISPLAYS) or isinstance(held, (*_DISPLAYS, ast.Call)):
                yield one

    def _writes_first(self, called: ast.expr) -> bool:
        if isinstance(called, ast.Name):
            return called.id in _WRITERS
        if not isinstance(called, ast.Attribute):
            return False
        is_type = isinstance(called.value, ast.Name) and isinstance(getattr(builtins, called.value.id, None), type)
        return called.attr in _WRITERS or (is_type and (called.attr in _MUTATORS or called.attr.startswith("__")))

    def _follow_bindings(self) -> None:
        """Collect what local names may be and hold, until nothing is added."""
        bindings, before = list(self._bindings()), None
        while before != self.locals:
            before = dict(self.locals)
            for name, value, is_element in bindings:
                itself, within = self._reach(value)
                was = self.locals.get(name, (_NOTHING, _NOTHING))
                self.locals[name] = (was[0] | (within if is_element else itself), was[1] | within)

    def _bindings(self) -> Iterator[tuple[str, ast.expr, bool]]:
        """Each local name with a value that it gets, and whether it gets an element of this value."""
        given = [part for node in self.nodes if isinstance(node, ast.Call) for part in node.args]
        given += [word.value for node in self.nodes if isinstance(node, ast.Call) for word in node.keywords]
        for node in self.nodes:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    yield from _bound(target, node.value, False)
            elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
                yield from _bound(node.target, node.value, False)
            elif isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
                yield from _bound(node.target, node.iter, True)
            elif isinstance(node, ast.withitem) and node.optional_vars is not None:
                yield from _bound(node.optional_vars, node.context_expr, True)
            elif isinstance(node, FunctionNode):
                results = (one for one in ast.walk(node) if isinstance(one, ast.Return | ast.Yield | ast.YieldFrom))
                yield from ((node.name, one.value, True) for one in results if one.value is not None)
            elif isinstance(node, ast.arg):  # of a nested function or a lambda: it may get what any call passes
                yield from ((node.arg, value, True) for value in given)

    def _reach(self, value: ast.expr) -> Reach:
        """The outer objects that an expression may be, and those that it may be or hold."""
        if isinstance(value, ast.Name):
            return self._of_name(value)
        if isinstance(value, ast.Attribute):
            if isinstance(value.value, ast.Name) and self.parameters.get(value.value.id) == "self":
                return _alone(f"self.{value.attr}")
            return _alone(ast.unparse(value)) if self._is_module(value.value) else self._elements(value.value)
        if isinstance(value, ast.Subscript):
            _, within = self._reach(value.value)
            return (_NOTHING if isinstance(value.slice, ast.Slice) else within), within
        if isinstance(value, ast.Call):
            return self._of_call(value)
        if isinstance(value, ast.IfExp | ast.BoolOp):
            parts = [value.body, value.orelse] if isinstance(value, ast.IfExp) else value.values
            return _union(self._reach(part) for part in parts)
        if isinstance(value, ast.NamedExpr | ast.Starred | ast.Await):
            return self._reach(value.value)
        if isinstance(value, ast.Lambda):
            return self._reach(value.body)
        if isinstance(value, ast.Constant | ast.JoinedStr | ast.Compare | ast.UnaryOp):
            return _NOTHING, _NOTHING
        inner = [node for node in ast.iter_child_nodes(value) if isinstance(node, ast.expr)]  # displays and sums: new
        return _NOTHING, _union(self._reach(part) for part in inner)[1]

    def _elements(self, value: ast.expr) -> Reach:
        _, within = self._reach(value)
        return within, within

    def _of_name(self, name: ast.Name) -> Reach:
        if name.id not in self.own:
            return (_NOTHING, _NOTHING) if self.file.is_plain(name.id) else _alone(name.id)
        itself, within = self.locals[name.id]
        if name.id in self.parameters and name.lineno <= self.rebound.get(name.id, name.lineno):
            word = frozenset({self.parameters[name.id]})
            itself, within = itself | word, within | word
        return itself, within

    def _of_call(self, call: ast.Call) -> Reach:
        given = _union(self._reach(part) for part in [*call.args, *(word.value for word in call.keywords)])[1]
        func = call.func
        if isinstance(func, ast.Attribute):
            if self._is_module(func.value) or func.attr in _FRESH:
                return _NOTHING, given | (self._reach(func.value)[1] if func.attr == "copy" else _NOTHING)
            return self._elements(func.value)
        if not isinstance(func, ast.Name) or func.id in self.own:
            within = self._reach(func)[1] | given
            return within, within
        if func.id in self.file.functions:
            state = self.file.effects(func.id)[1]
            return state, state | given
        return (given if func.id in _PASS_ON else _NOTHING), (given if func.id in _PASS_ON | _COPIES else _NOTHING)

    def _is_module(self, value: ast.expr) -> bool:
        while isinstance(value, ast.Attribute):
            value = value.value
        return isinstance(value, ast.Name) and value.id in self.file.modules and value.id not in self.own


def _parameters(node: FunctionNode, is_method: bool) -> dict[str, str]:
    """What each parameter stands for. The first one of a method is the object itself."""
    given = [one.arg for one in ast.walk(node.args) if isinstance(one, ast.arg)]
    first = [one.arg for one in [*node.args.posonlyargs, *node.args.args]][:1]
    is_static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in node.decorator_list)
    words = {name: f"the argument {name}" for name in given}
    return words | (dict.fromkeys(first, "self") if is_method and not is_static else {})


def _rebound(node: FunctionNode) -> dict[str, int]:
    """The line behind which a parameter is another object: `items = sorted(items)` at the top of the function."""
    return {
        one.targets[0].id: one.end_lineno or one.lineno
        for one in reversed(node.body)
        if isinstance(one, ast.Assign) and len(one.targets) == 1 and isinstance(one.targets[0], ast.Name)
    }


def _names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Names that a function binds, but for imports and patterns: these count as objects from outside."""
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, FunctionNode | ast.ClassDef | ast.ExceptHandler) and node.name:
            yield node.name


def _bound(target: ast.expr, value: ast.expr, is_element: bool) -> Iterator[tuple[str, ast.expr, bool]]:
    if isinstance(target, ast.Name):
        yield target.id, value, is_element
    elif isinstance(target, ast.Starred):
        yield from _bound(target.value, value, True)
    elif isinstance(target, ast.Tuple | ast.List):
        is_pairwise = isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts) and not is_element
        for number, part in enumerate(target.elts):
            one = value.elts[number] if is_pairwise else value  # type: ignore[attr-defined]
            yield from _bound(part, one, is_element or not is_pairwise)


def _alone(name: str) -> Reach:
    return frozenset({name}), frozenset({name})


def _union(reaches: Iterable[Reach]) -> Reach:
    itself, within = _NOTHING, _NOTHING
    for one, other in reaches:
        itself, within = itself | one, within | other
    return itself, within
