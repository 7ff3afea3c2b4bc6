"""The untrusted half of a Python run: holds the candidate's program, answers its judge's questions.

Goes in: the candidate's source, then questions (call this name, read that attribute). Comes out: answers as plain data. Nothing
of the tests is ever here, neither the asserts nor the expected values; whatever the candidate does to this process, it can
only change its own answers. Imports as little as it can: every program is a fork of this.
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
    """What stays in this process: the program's names, and every object that has no plain form."""

    def __init__(self, names: dict[str, Any]):
        self.names = names
        self.kept: list[Any] = []

    def keep(self, value: object) -> dict[str, Any]:
        """A number the judge can ask after."""
        self.kept.append(value)
        return {"type": "reference", "value": len(self.kept) - 1}

    def find(self, key: int | str) -> Any:
        """The object behind a number, or behind a global name of the program."""
        if isinstance(key, int):
            return self.kept[key]
        if key not in self.names:
            raise NameError(f"name '{key}' is not defined")
        return self.names[key]


def serve(channel: Channel) -> None:
    """Run the program that comes first on the channel, answer the questions with it, then others until the judge hangs up."""
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
    """`[result]`, and behind it the arguments as they are now where the call changed them."""
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
