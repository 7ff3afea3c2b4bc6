"""The verdict on an answer, and the negative control after a pass. The two sides are threads instead of processes."""

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from mftcoder.execution.compiled.judging import NO_CHANGE, Sides, judge
from mftcoder.execution.compiled.relay import Peer
from mftcoder.execution.python.zygote_handle import RunEnd
from mftcoder.execution.sandbox import Limits

LIMITS = Limits(seconds=60)


def send(end: socket.socket, kind: bytes, body: bytes = b"") -> None:
    end.sendall(struct.pack("<I", len(body) + 1) + kind + body)


def receive(end: socket.socket) -> bytes:
    length = end.recv(4, socket.MSG_WAITALL)
    if not length:
        raise EOFError
    return end.recv(struct.unpack("<I", length)[0], socket.MSG_WAITALL)


class Threaded:
    """A side whose process is a function of its socket and of `change`."""

    def __init__(self, process: Callable[[socket.socket, int], None], end: RunEnd = RunEnd()):  # noqa: B008
        self.process, self.how, self.changes = process, end, list[int]()

    @contextmanager
    def start(self, change: int, deadline: float) -> Iterator[Peer]:
        self.changes.append(change)
        here, there = socket.socketpair()
        outputs = [os.pipe() for _ in range(2)]
        for _, writer in outputs:
            os.close(writer)
        peer = Peer(here, [reader for reader, _ in outputs], deadline=deadline)

        def run() -> None:
            with there, suppress(EOFError, ConnectionError):  # it is hung up on when the run is over
                self.process(there, change)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield peer
        finally:
            peer.close()
            thread.join()

    def end(self, *, finished: bool, patience: float) -> RunEnd:
        return self.how


def expects_four(end: socket.socket, change: int) -> None:
    """Tests with one claim: the answer must be four, or five if the claim is changed."""
    send(end, b"q", b"twice two?")
    right = receive(end) == (b"a5" if change == 0 else b"a4")
    send(end, b"v", b"passed" if right else b"failed it is not four")


def says(text: bytes) -> Threaded:
    def process(end: socket.socket, claim: int) -> None:
        receive(end)
        send(end, b"a", text)

    return Threaded(process)


def test_a_right_answer_passes_and_was_run_against_a_changed_test() -> None:
    tests = Threaded(expects_four)
    assert judge(Sides(says(b"4"), tests, 1), LIMITS).status == "passed"
    assert tests.changes == [NO_CHANGE, 0]


def test_a_wrong_answer_fails_after_one_run() -> None:
    tests = Threaded(expects_four)
    result = judge(Sides(says(b"3"), tests, 1), LIMITS)
    assert (result.status, result.stderr) == ("failed", "it is not four")
    assert tests.changes == [NO_CHANGE]


def test_an_answer_that_passes_a_changed_test_has_cheated() -> None:
    tests = Threaded(lambda end, change: send(end, b"v", b"passed"))
    assert judge(Sides(says(b""), tests, 5), LIMITS).status == "cheated"
    first, second = tests.changes[1:]
    assert first % 2 == 0 and second == first + 1  # one claim, downwards and upwards


def test_an_answer_that_fails_one_of_the_two_changes_has_not_cheated() -> None:
    """`f(x) > 3` holds as well with a smaller number."""
    tests = Threaded(lambda end, change: send(end, b"v", b"failed" if change % 2 and change > 0 else b"passed"))
    assert judge(Sides(says(b""), tests, 5), LIMITS).status == "passed"


def test_after_a_claim_that_is_never_reached_another_is_drawn() -> None:
    tests = Threaded(lambda end, change: send(end, b"v", b"void" if change >= 0 else b"passed"))
    assert judge(Sides(says(b""), tests, 5), LIMITS).status == "passed"
    assert len(tests.changes) == 4 and len(set(tests.changes)) == 4


def test_tests_without_claims_are_run_once() -> None:
    tests = Threaded(expects_four)
    assert judge(Sides(says(b"4"), tests, 0), LIMITS).status == "passed"
    assert tests.changes == [NO_CHANGE]


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (RunEnd(ended=True, exit_code=0), "failed"),
        (RunEnd(ended=True, exit_code=-9, memory_killed=True), "out_of_memory"),
        (RunEnd(ended=True, exit_code=-24), "timeout"),
    ],
)
def test_a_candidate_that_ends_has_the_status_of_its_process(end: RunEnd, status: str) -> None:
    answer = Threaded(lambda wire, claim: None, end)
    assert judge(Sides(answer, Threaded(expects_four), 1), LIMITS).status == status


def test_a_judge_that_ends_without_a_verdict_is_not_a_pass() -> None:
    tests = Threaded(lambda end, change: None, RunEnd(ended=True, exit_code=-11))
    assert judge(Sides(says(b"4"), tests, 1), LIMITS).status == "failed"


def test_an_answer_that_never_comes_is_a_timeout() -> None:
    def silent(end: socket.socket, claim: int) -> None:
        while end.recv(100):
            pass

    result = judge(Sides(Threaded(silent), Threaded(expects_four), 1), Limits(seconds=0.05))
    assert result.status == "timeout"
