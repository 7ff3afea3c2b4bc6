"""The trusted half of a Python run: executes the tests, and asks the candidate's process for every answer.

Goes in: the tests' source and a channel to the candidate. Comes out: nothing if all passed, else an exception. The names that
the tests use and do not define (the entry point, a class of the solution) are stand-ins: calling one sends its arguments and
receives plain data. The tests, their expected values, `assert` and `==` are never within the candidate's reach.
What it does not do: start, limit or kill the candidate (worker.py does).
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

# Modules that tests use without importing them, and that the candidate must not be asked to lend.
LIBRARY = frozenset({"math", "re", "sys", "copy", "datetime", "itertools", "collections", "heapq", "random", "string"})


_REPLAYED_BYTES = 32 << 20  # of a candidate's answers, that are kept for its negative control


class CandidateError(Exception):
    """The candidate's program raised, and the exception is no built-in one."""


class OtherQuestionsError(BaseException):
    """The script does not suit this candidate: the tests ask it something else, or its answers are too large to come together."""


Question = dict[str, Any]


class Judge:
    """One run of one candidate against its tests.

    Most tests ask every candidate the same questions. So those that a candidate before was asked (`script`) go along with the
    program, all at once, and are answered at once: one journey for all, where each would cost the processes two switches.
    A script holds arguments only, never what the tests expect.
    """

    def __init__(self, channel: Channel, script: Sequence[Question] = ()):
        self.channel = channel
        self.script = script
        self.asked: list[Question] = []
        self.replies: list[dict[str, Any]] = []  # to what was asked
        self.ahead: deque[dict[str, Any]] = deque()  # answers to what is left of the script
        self.lost: BaseException | None = None  # a test that catches everything must not take this for an answer

    def run(self, candidate: str, tests: str, entry_point: str) -> None:
        """Execute the candidate there and the tests here; whatever the tests raise is raised."""
        compiled = _compiled(tests, entry_point)
        self.channel.send({"source": candidate, "script": list(self.script)})
        reply = self._first_reply()
        self.ahead.extend(reply["script"])
        _answer_of(reply["loaded"])
        self._execute(*compiled)

    def _execute(self, code: CodeType, open_names: Sequence[str]) -> None:
        names: dict[str, Any] = {name: _library_or(name, self) for name in open_names}
        try:
            exec(code, names)
        finally:
            names.clear()  # the tests' functions and their names hold each other, and with them what was built
        if self.lost:
            raise self.lost

    def _first_reply(self) -> dict[str, Any]:
        """How loading went, with the answers to the script; each alone may be small enough where all together are not."""
        try:
            return self._receive()
        except MessageTooLargeError as error:
            if self.script:
                raise OtherQuestionsError from error
            raise

    def replayed(self, tests: str, entry_point: str) -> None:
        """Execute other tests against what this candidate has answered; OtherQuestionsError if they ask something else."""
        if len(self.replies) < len(self.asked):
            raise OtherQuestionsError  # they were too many to keep
        replay = Judge(self.channel, self.asked)
        replay.ahead.extend(self.replies)
        replay._execute(*_compiled(tests, entry_point))

    def ask(self, operation: str, target: int | str, arguments: tuple = (), named: dict[str, Any] | None = None) -> Any:
        """Have the candidate's process do `operation`; changed lists, dicts and sets are changed here too."""
        sent = encode(list(arguments), _reference_of)
        question = {
            "operation": operation,
            "target": target,
            "arguments": sent,
            "named": encode(named or {}, _reference_of),
        }
        reply = self._ahead(question) or self._send(question)
        if self.channel.received < _REPLAYED_BYTES:
            self.replies.append(reply)
        answer = _answer_of(reply)
        if len(answer) > 1:
            for here, there in zip(arguments, answer[1], strict=True):
                _copy_back(here, decode(there, self._stand_in))
        return decode(answer[0], self._stand_in)

    def _ahead(self, question: Question) -> dict[str, Any] | None:
        """The answer that has come with the script, if this question was next in it."""
        number = len(self.asked)
        self.asked.append(question)
        if number >= len(self.script):
            return None
        known = self.script[number]
        if known != question and repr(known) != repr(question):  # a nan does not equal itself
            self.lost = OtherQuestionsError()
            raise self.lost
        return self.ahead.popleft()

    def _send(self, question: Question) -> dict[str, Any]:
        try:
            self.channel.send(question)
        except ChannelClosedError as error:
            self.lost = error
            raise
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        try:
            return self.channel.receive()
        except (ChannelClosedError, MessageTooLargeError) as error:
            self.lost = error
            raise

    def _stand_in(self, key: Any) -> "StandIn":
        return StandIn(self, int(key))


class StandIn:
    """An object or a global name of the candidate's program. Equal to nothing but itself; no arithmetic, no order.

    Comparing is what a cheat would want to be asked for, so a comparison never leaves this process.
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
    """What the candidate raised, if it is built in: tests may expect it."""
    kind = vars(builtins).get(name)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:  # UnicodeDecodeError and a few more want other arguments
            pass
    return CandidateError(f"{name}: {message}")


def _answer_of(reply: dict[str, Any]) -> list[Any]:
    """What the candidate answered; raises what it raised."""
    if "error" in reply:
        raise _exception(str(reply["error"]), str(reply.get("message", "")))
    return reply["answer"]


def can_be_scripted(questions: Sequence[Question]) -> bool:
    """True if every question is a call of a global name with plain arguments, so that it means the same to every candidate."""
    return all(
        q["operation"] == "call" and isinstance(q["target"], str) and not _refers(q["arguments"]) for q in questions
    )


def _refers(wire: Any) -> bool:
    if isinstance(wire, dict):
        return wire.get("type") == "reference" or _refers(wire.get("value"))
    return isinstance(wire, list) and any(map(_refers, wire))


def _reference_of(value: object) -> dict[str, Any]:
    if isinstance(value, StandIn):
        return {"type": "reference", "value": object.__getattribute__(value, "_key")}
    raise TypeError(f"the tests pass a {type(value).__name__}, which cannot cross to the candidate's process")


def _copy_back(here: Any, there: Any) -> None:
    if isinstance(here, list) and isinstance(there, list):
        here[:] = there
    elif isinstance(here, (dict, set)) and type(here) is type(there):
        here.clear()
        here.update(there)


def _library_or(name: str, judge: Judge) -> Any:
    return importlib.import_module(name) if name in LIBRARY else StandIn(judge, name)


@functools.lru_cache(maxsize=512)
def _compiled(tests: str, entry_point: str) -> tuple[CodeType, tuple[str, ...]]:
    """The tests' code, and the names it uses and never sets. The entry point is one of them, also where it is `sum`."""
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
