"""The untrusted process of a Python run: it executes the answer and replies to the judge's questions with plain data.

A question is a call, the read of an attribute and so on. No test and no expected value is in this process, so whatever the answer
does to it changes its own replies only. This file imports little, because every program is a fork of it.
"""

import operator
from collections.abc import Callable
from typing import Any

from mftcoder.execution.channel import Channel, ChannelClosedError
from mftcoder.execution.python.wire import decode, encode

_OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, *arguments: target(*arguments),
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "length": len,
    "truth": bool,
    "text": str,
    "iterate": iter,
    "next": next,
}


class _Objects:
    """The program's global names, and the objects that cannot cross as plain data."""

    def __init__(self, names: dict[str, Any]):
        self.names = names
        self.kept: list[Any] = []

    def keep(self, value: object) -> dict[str, Any]:
        """A reference by which the judge can ask about the object."""
        self.kept.append(value)
        return {"type": "reference", "value": len(self.kept) - 1}

    def find(self, key: int | str) -> Any:
        """The object behind a reference, or behind a global name of the program."""
        if isinstance(key, int):
            return self.kept[key]
        if key not in self.names:
            raise NameError(f"name '{key}' is not defined")
        return self.names[key]


def serve(channel: Channel) -> None:
    """Run the program in the first message, reply to the questions in it, then to more until the judge closes the channel."""
    names: dict[str, Any] = {}
    objects = _Objects(names)
    try:
        request = channel.receive()
        loaded = _attempt(lambda: _execute(request["source"], names))
        script = request["script"] if "answer" in loaded else []
        answers = [_attempt(lambda question=question: _answer(question, objects)) for question in script]  # type: ignore[misc]
        channel.send({"loaded": loaded, "script": answers})
        while True:
            question = channel.receive()
            channel.send(_attempt(lambda question=question: _answer(question, objects)))  # type: ignore[misc]
    except ChannelClosedError:
        return


def _execute(source: str, names: dict[str, Any]) -> list[Any]:
    exec(compile(source, "<candidate>", "exec"), names)
    return []


def _answer(question: dict[str, Any], objects: _Objects) -> list[Any]:
    """`[result]`, or `[result, arguments]` if the call changed its arguments."""
    arguments = decode(question["arguments"], objects.find)
    named = decode(question["named"], objects.find)
    target = objects.find(question["target"])
    result = encode(_OPERATIONS[question["operation"]](target, *arguments, **named), objects.keep)
    if question["operation"] != "call" or not any(isinstance(item, (list, dict, set)) for item in arguments):
        return [result]
    after = encode(arguments, objects.keep)
    return [result] if after == question["arguments"] else [result, after]


def _attempt(action: Callable[[], list[Any]]) -> dict[str, Any]:
    try:
        return {"answer": action()}
    except BaseException as error:  # also SystemExit and KeyboardInterrupt: a candidate may raise anything
        return {"error": type(error).__name__, "message": _message(error)}


def _message(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except Exception:
        return ""
