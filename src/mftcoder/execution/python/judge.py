"""The trusted process of a Python run: it executes the tests, and asks the candidate's process for every value.

Names that the tests use and do not define (the entry point, a class of the solution) are proxies: calling one sends the arguments
and receives plain data. The candidate cannot reach the tests, their expected values, `assert` or `==`. Starting, limiting and
killing the candidate is left to run.py and zygote.py.
"""

import builtins
import dis
import functools
import importlib
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Any

from mftcoder.execution.channel import Channel, ChannelClosedError, MessageTooLargeError
from mftcoder.execution.python.wire import decode, encode

# Modules that tests use without importing them. They come from this process, never from the candidate.
LIBRARY = frozenset({"math", "re", "sys", "copy", "datetime", "itertools", "collections", "heapq", "random", "string"})

_REPLAYED_BYTES = 32 << 20  # of a candidate's replies that are kept for its negative control


class CandidateError(Exception):
    """The answer raised an exception that is not a built-in one."""


class ScriptMismatchError(BaseException):
    """The script does not fit this candidate: the tests ask something else, or the replies are too large to come together."""


Question = dict[str, Any]


class Judge:
    """One run of one candidate against its tests.

    Most tests ask every candidate the same questions. So the questions that an earlier candidate was asked (`script`) are sent with
    the program, and all replies come back at once, which saves two context switches per question. A script holds arguments only,
    never expected values.
    """

    def __init__(self, channel: Channel, script: Sequence[Question] = ()):
        self.channel = channel
        self.script = script
        self.asked: list[Question] = []
        self.replies: list[dict[str, Any]] = []  # to the questions in `asked`
        self.scripted: deque[dict[str, Any]] = deque()  # replies to the rest of the script
        self.broken: BaseException | None = None  # raised at the end, in case a test catches every exception

    def run(self, candidate: str, tests: str, entry_point: str) -> None:
        """Execute the answer there and the tests here; raises whatever the tests raise."""
        compiled = _compiled(tests, entry_point)
        self.channel.send({"source": candidate, "script": list(self.script)})
        reply = self._first_reply()
        self.scripted.extend(reply["script"])
        _answer_of(reply["loaded"])
        self._execute(*compiled)

    def _execute(self, code: CodeType, open_names: Sequence[str]) -> None:
        names: dict[str, Any] = {
            name: importlib.import_module(name) if name in LIBRARY else Proxy(self, name) for name in open_names
        }
        try:
            exec(code, names)
        finally:
            names.clear()  # functions and their globals form a reference cycle, which would keep the tests' values
        if self.broken:
            raise self.broken

    def _first_reply(self) -> dict[str, Any]:
        """How loading went, and the replies to the script. Together they may exceed the limit though each one alone does not."""
        try:
            return self._receive()
        except MessageTooLargeError as error:
            if self.script:
                raise ScriptMismatchError from error
            raise

    def replay(self, tests: str, entry_point: str) -> None:
        """Execute other tests against the replies of this run; ScriptMismatchError if they ask something else."""
        if len(self.replies) < len(self.asked):
            raise ScriptMismatchError  # the replies were too large to keep
        replaying = Judge(self.channel, self.asked)
        replaying.scripted.extend(self.replies)
        replaying._execute(*_compiled(tests, entry_point))

    def ask(self, operation: str, target: int | str, arguments: tuple = (), named: dict[str, Any] | None = None) -> Any:
        """Have the candidate's process do `operation`. Lists, dicts and sets that it changes are changed here too."""
        sent = encode(list(arguments), _reference_of)
        question = {
            "operation": operation,
            "target": target,
            "arguments": sent,
            "named": encode(named or {}, _reference_of),
        }
        reply = self._scripted_reply(question) or self._send(question)
        if self.channel.received < _REPLAYED_BYTES:
            self.replies.append(reply)
        answer = _answer_of(reply)
        if len(answer) > 1:
            for here, there in zip(arguments, answer[1], strict=True):
                _copy_back(here, decode(there, self._proxy))
        return decode(answer[0], self._proxy)

    def _scripted_reply(self, question: Question) -> dict[str, Any] | None:
        """The reply that came with the script; None behind the script's end."""
        number = len(self.asked)
        self.asked.append(question)
        if number >= len(self.script):
            return None
        known = self.script[number]
        if known != question and repr(known) != repr(question):  # nan is not equal to itself
            self.broken = ScriptMismatchError()
            raise self.broken
        return self.scripted.popleft()

    def _send(self, question: Question) -> dict[str, Any]:
        try:
            self.channel.send(question)
        except ChannelClosedError as error:
            self.broken = error
            raise
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        try:
            return self.channel.receive()
        except (ChannelClosedError, MessageTooLargeError) as error:
            self.broken = error
            raise

    def _proxy(self, key: Any) -> "Proxy":
        return Proxy(self, int(key))


class Proxy:
    """An object or a global name of the answer. Equal only to itself; no arithmetic, no order.

    A comparison never asks the candidate, because a cheat would reply "equal".
    """

    __slots__ = ("_judge", "_key")
    __hash__ = object.__hash__

    def __init__(self, judge: Judge, key: int | str):
        object.__setattr__(self, "_judge", judge)
        object.__setattr__(self, "_key", key)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._judge.ask("call", self._key, arguments, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._judge.ask("get", self._key, (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._judge.ask("set", self._key, (name, value))

    def __getitem__(self, key: Any) -> Any:
        return self._judge.ask("item", self._key, (key,))

    def __len__(self) -> int:
        return int(self._judge.ask("length", self._key))

    def __bool__(self) -> bool:
        return self._judge.ask("truth", self._key) is True

    def __str__(self) -> str:
        return str(self._judge.ask("text", self._key))

    def __iter__(self) -> Iterator[Any]:
        iterator = self._judge.ask("iterate", self._key)
        while True:
            try:
                yield iterator.__next__()
            except StopIteration:
                return

    def __next__(self) -> Any:
        return self._judge.ask("next", self._key)


def _exception(name: str, message: str) -> Exception:
    """The exception that the candidate raised, if it is a built-in one: tests may expect it. Else CandidateError."""
    kind = vars(builtins).get(name)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:  # UnicodeDecodeError and a few more take other arguments
            pass
    return CandidateError(f"{name}: {message}")


def _answer_of(reply: dict[str, Any]) -> list[Any]:
    """The candidate's answer; raises what the candidate raised."""
    if "error" in reply:
        raise _exception(str(reply["error"]), str(reply.get("message", "")))
    return reply["answer"]


def can_be_scripted(questions: Sequence[Question]) -> bool:
    """True if every question calls a global name with plain arguments, and so can be asked of every candidate."""
    return all(
        q["operation"] == "call" and isinstance(q["target"], str) and not _refers(q["arguments"]) for q in questions
    )


def _refers(wire: Any) -> bool:
    if isinstance(wire, dict):
        return wire.get("type") == "reference" or _refers(wire.get("value"))
    return isinstance(wire, list) and any(map(_refers, wire))


def _reference_of(value: object) -> dict[str, Any]:
    if isinstance(value, Proxy):
        return {"type": "reference", "value": object.__getattribute__(value, "_key")}
    raise TypeError(f"the tests pass a {type(value).__name__}, which cannot cross to the candidate's process")


def _copy_back(here: Any, there: Any) -> None:
    if isinstance(here, list) and isinstance(there, list):
        here[:] = there
    elif isinstance(here, (dict, set)) and type(here) is type(there):
        here.clear()
        here.update(there)


@functools.lru_cache(maxsize=512)
def _compiled(tests: str, entry_point: str) -> tuple[CodeType, tuple[str, ...]]:
    """The tests' code, and the names that it uses but never sets. The entry point is one, even if it has a builtin's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code = compile(tests, "<tests>", "exec")
    used, bound = set[str](), set[str]()
    for instruction in _instructions(code):
        if instruction.opname in ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"):
            used.add(instruction.argval)
        elif instruction.opname in ("STORE_NAME", "STORE_GLOBAL"):
            bound.add(instruction.argval)
    return code, tuple(sorted(used - bound - (set(vars(builtins)) - {entry_point})))


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    yield from dis.get_instructions(code)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
