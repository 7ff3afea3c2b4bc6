"""Find calls of a function and their results. This is the half of recording.py that runs in the sandbox, beside the function.

The result is JSON: a few calls, their results, and the mutants that give another result for one of them. The text of this file is put in
front of mined code, so it imports the standard library only. All choices are seeded, and a call ends after a number of steps, not of
seconds. So the same function gives the same calls on every machine.
"""

import ast
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any

VALUES = {
    "str": [
        *(
            "''",
            "'a'",
            "'abc'",
            "'ABC'",
            "'Hello World'",
            "'a,b,c'",
            "'a.b.c'",
            "'a-b'",
            "'x y z'",
            "'foo_bar'",
            "'12'",
        ),
        *("'3.5'", "'(1, 2)'", "'key=value'", "'path/to/file.txt'", "'/usr/lib/x.py'", "'<p>Hi & bye</p>'", "'%s %d'"),
        *("'  two  spaces '", "'one\\ntwo\\n'", "'\\t'", "'\"quoted\"'", "'--option'", "'2024-01-31'"),
        *("'http://www.example.com:80/p?q=1#f'", "'text/html; charset=utf-8'"),
    ],
    "int": ["0", "1", "2", "3", "5", "7", "10", "-1", "-4", "64", "100", "255", "1000"],
    "bytes": ["b''", "b'abc'", "b'Hello World'", "b'\\x00\\x01\\x02\\xff'", "b'12'", "b'a=b'"],
    "list": [
        *("[]", "[1]", "[1, 2, 3]", "[3, 1, 2, 2]", "[0, -1, 5]", "[1.5, 2.5, 4.0]", "['a', 'b']", "['b', 'a', 'c']"),
        *("['one', '', 'two']", "[[1, 2], [3]]", "[('a', 1), ('b', 2)]"),
    ],
    "tuple": ["()", "(1, 2)", "('a', 'b')", "(3, 1, 2)", "(0, 0, 0)"],
    "dict": ["{}", "{'a': 1}", "{'a': 1, 'b': 2}", "{'x': 'y'}", "{1: [2]}"],
    "float": ["0.0", "0.5", "1.5", "-2.25", "2.0", "10.0"],
    "set": ["{1, 2}", "{'a'}"],
    "bool": ["True", "False"],
    "NoneType": ["None"],
}
"""Literals by type. The types that functions take most often come first."""
FIRST = [
    "5",
    "'abc'",
    "b'abc'",
    "[1, 2, 3]",
    "['a', 'b']",
    "(1, 2)",
    "{'a': 1}",
    "1.5",
    "True",
    "None",
    "''",
    "'a.b/c'",
]
"""One literal of each type, to find out what a function takes."""
STEPS = 20_000  # of the interpreter, at most, in a call
LONGEST = 70  # characters of arguments, and of a result
PRODUCT, SIGNATURES, DRAWN = 400, 3, 60  # first tries; combinations of types that are examined; random draws of each
ENOUGH = 3  # different results of one combination of types

Calls = dict[str, str]  # text of the arguments -> text of the result


class TooLongError(BaseException):
    """The call took too many steps."""


def record(
    context: str,
    function: str,
    name: str,
    *,
    mutants: Sequence[str],
    arity: int,
    seeds: Sequence[str],
    own: Sequence[str],
    most: int,
) -> str:
    """At most `most` calls that distinguish the function from its mutants, as JSON; `{"reason": ...}` if there are none.

    `seeds` are complete lists of arguments, taken from examples and tests. `own` are literals of the function's text.
    """
    calls = search(load(context + function, name), arity, seeds, own)
    again = answers(context + function, name, calls)
    calls = {arguments: answer for arguments, answer in calls.items() if again[arguments] == answer}
    if len(set(calls.values())) < 2:
        return json.dumps({"reason": "always answers the same" if calls else "no plain values fit it"})
    found = [answers(context + mutant, name, calls) for mutant in mutants]
    fallen = [{arguments for arguments in calls if other[arguments] != calls[arguments]} for other in found]
    chosen = choose(calls, fallen, seeds, most)
    killed = [number for number, those in enumerate(fallen) if those & set(chosen)]
    return json.dumps({"calls": [[arguments, calls[arguments]] for arguments in chosen], "killed": killed})


def load(source: str, name: str) -> Callable[..., Any]:
    """The function `name` of a program."""
    names: dict[str, Any] = {}
    exec(compile(source, "<mined>", "exec"), names)
    return names[name]


def answers(source: str, name: str, calls: Iterable[str]) -> dict[str, str | None]:
    """The results of the same calls of another program's function."""
    try:
        function = load(source, name)
    except BaseException:
        return dict.fromkeys(calls)
    return {arguments: answer(function, arguments) for arguments in calls}


def answer(function: Callable[..., Any], arguments: str) -> str | None:
    """The text of the call's result; None if it raises, runs too long, or returns a value that is not a literal."""
    left = STEPS

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        frame.f_trace_opcodes = True  # a loop in one line makes no line events
        left -= 1
        if left < 0:
            raise TooLongError
        return count

    values = ast.literal_eval(f"[{arguments}]")  # new ones: a function can change its arguments
    before = sys.gettrace()
    try:
        sys.settrace(count)
        try:
            value = function(*values)
        finally:
            sys.settrace(before)
        text = repr(value) if is_plain(value) else ""
    except BaseException:
        return None
    return text if 0 < len(text) <= LONGEST else None


def is_plain(value: object, depth: int = 4) -> bool:
    """True for what `ast.literal_eval` reads back as an equal value."""
    kind = type(value)
    if kind in (bool, int, str, bytes, type(None)):
        return True
    if kind is float:
        return value - value == 0  # type: ignore[operator]  # neither infinite nor nan
    if depth and kind in (list, tuple, set):
        return all(is_plain(item, depth - 1) for item in value)  # type: ignore[attr-defined]
    return bool(depth) and kind is dict and all(is_plain(pair, depth) for pair in value.items())  # type: ignore[attr-defined]


def search(function: Callable[..., Any], arity: int, seeds: Sequence[str], own: Sequence[str]) -> Calls:
    """Calls that give a result: the seeds, then arguments of the few combinations of types that give the most different results."""
    rng = random.Random(7)
    product = list(itertools.islice(itertools.product([*FIRST, *own[:6]], repeat=arity), 20_000))
    first = product if len(product) <= PRODUCT else rng.sample(product, PRODUCT)
    kinds: dict[tuple[str, ...], Calls] = {}
    for values in first:
        _attempt(function, values, kinds)
    for kind in _likeliest(kinds):
        pools = [[*VALUES[part], *(value for value in own if kind_of(value) == part)] for part in kind]
        fitting = next(iter(kinds[kind]))
        begin = [ast.unparse(node) for node in ast.parse(f"[{fitting}]", mode="eval").body.elts]  # type: ignore[attr-defined]
        for position, pool in enumerate(pools):
            for value in pool:
                _attempt(function, [*begin[:position], value, *begin[position + 1 :]], kinds)
        for _ in range(DRAWN if arity > 1 else 0):
            _attempt(function, [rng.choice(pool) for pool in pools], kinds)
    found = {arguments: text for arguments in seeds if (text := answer(function, arguments)) is not None}
    return found | {arguments: text for kind in _likeliest(kinds) for arguments, text in kinds[kind].items()}


def _likeliest(kinds: dict[tuple[str, ...], Calls]) -> list[tuple[str, ...]]:
    """The combinations of types that a function is most likely written for: they give several results and are common."""
    rank = {kind: number for number, kind in enumerate(VALUES)}

    def order(kind: tuple[str, ...]) -> tuple[int, int]:
        return -min(len(set(kinds[kind].values())), ENOUGH), sum(rank.get(part, len(rank)) for part in kind)

    return sorted(kinds, key=order)[:SIGNATURES]


def _attempt(function: Callable[..., Any], values: Sequence[str], kinds: dict[tuple[str, ...], Calls]) -> None:
    arguments = ", ".join(values)
    text = answer(function, arguments) if len(arguments) <= LONGEST else None
    if text is not None:
        kinds.setdefault(tuple(map(kind_of, values)), {})[arguments] = text


def kind_of(literal: str) -> str:
    """`'abc'` -> str."""
    return type(ast.literal_eval(literal)).__name__


def choose(calls: Calls, fallen: Sequence[set[str]], seeds: Sequence[str], most: int) -> list[str]:
    """Repeatedly the call that distinguishes the function from the most remaining mutants. Ties prefer new, natural and informative results."""
    chosen: list[str] = []
    alive = [those for those in fallen if those]

    def worth(arguments: str) -> tuple[int, bool, bool, bool, int]:
        text = calls[arguments]
        kills = sum(arguments in those for those in alive)
        is_new = text not in {calls[other] for other in chosen}
        is_telling = len(text) > 3 and text not in arguments
        return kills, is_new, arguments in seeds, is_telling, -len(arguments) - len(text)

    while len(chosen) < min(most, len(calls)):
        best = max((arguments for arguments in calls if arguments not in chosen), key=worth)
        chosen.append(best)
        alive = [those for those in alive if best not in those]
    return chosen
