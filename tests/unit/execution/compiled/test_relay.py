"""Frames between the tests' process and the answer's, as the worker carries them."""

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mftcoder.execution.compiled.relay import EndedError, LateError, NoVerdictError, Peer, relay


def frame(kind: bytes, body: bytes) -> bytes:
    return struct.pack("<I", len(body) + 1) + kind + body


@pytest.fixture
def sides() -> Iterator[tuple[Peer, Peer, socket.socket, socket.socket]]:
    """Two peers, and the far ends that play the processes."""
    (tests, theirs), (answer, its) = socket.socketpair(), socket.socketpair()
    peers = [Peer(end, deadline=time.monotonic() + 5) for end in (tests, answer)]
    yield peers[0], peers[1], theirs, its
    for closing in (*peers, theirs, its):
        closing.close()


def play(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_a_question_and_its_answer_are_carried_until_the_verdict(sides) -> None:
    tests, answer, theirs, its = sides
    its.sendall(frame(b"a", b"four"))
    theirs.sendall(frame(b"q", b"twice two?") + frame(b"v", b"passed"))
    assert relay(tests, answer) == "passed"
    assert (its.recv(100), theirs.recv(100)) == (frame(b"q", b"twice two?"), frame(b"a", b"four"))


def test_a_verdict_from_the_answer_reaches_the_tests_as_an_exception(sides) -> None:
    tests, answer, theirs, its = sides
    its.sendall(frame(b"v", b"passed"))
    theirs.sendall(frame(b"q", b"") + frame(b"v", b"failed"))
    assert relay(tests, answer) == "failed"
    assert theirs.recv(100) == frame(b"e", b"passed")


def test_an_answer_that_hangs_up_has_ended(sides) -> None:
    tests, answer, theirs, its = sides
    theirs.sendall(frame(b"q", b""))
    its.close()
    with pytest.raises(EndedError):
        relay(tests, answer)


def test_tests_that_hang_up_without_a_verdict_are_told_apart_from_the_answer(sides) -> None:
    tests, answer, theirs, _ = sides
    theirs.close()
    with pytest.raises(NoVerdictError):
        relay(tests, answer)


@pytest.mark.parametrize("size", [0, (8 << 20) + 1, 0xFFFFFFFF])
def test_a_frame_of_an_impossible_size_ends_its_sender(sides, size: int) -> None:
    _, answer, _, its = sides
    its.sendall(struct.pack("<I", size) + b"a")
    with pytest.raises(EndedError):
        answer.receive()


def test_a_peer_that_says_nothing_is_late(sides) -> None:
    _, answer, _, _ = sides
    answer.deadline = time.monotonic() + 0.05
    with pytest.raises(LateError):
        answer.receive()


def test_a_peer_that_does_not_read_is_late(sides) -> None:
    _, answer, _, _ = sides
    answer.deadline = time.monotonic() + 0.05
    with pytest.raises(LateError):
        answer.send(b"q", bytes(8 << 20))


def test_outputs_are_read_while_waiting_and_their_beginning_is_kept() -> None:
    here, there = socket.socketpair()
    reader, writer = os.pipe()
    peer = Peer(here, [reader], kept_bytes=10, deadline=time.monotonic() + 5)

    def flood() -> None:
        os.write(writer, b"x" * 1_000_000)  # far more than a pipe holds
        there.sendall(frame(b"a", b"done"))

    thread = play(flood)
    assert peer.receive() == (b"a", b"done")
    thread.join()
    os.close(writer)
    assert peer.drain() == ("x" * 10,)
    peer.close()
    there.close()
