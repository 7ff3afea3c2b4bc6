"""Frames between the judge and the candidate, as the worker passes them on."""

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
    """Two peers, and the other ends of their sockets, which act as the processes."""
    (tests, theirs), (answer, its) = socket.socketpair(), socket.socketpair()
    peers = [Peer(end, deadline=time.monotonic() + 60) for end in (tests, answer)]
    yield peers[0], peers[1], theirs, its
    for closing in (*peers, theirs, its):
        closing.close()


def play(action: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    return thread


def test_questions_and_answers_are_passed_on_until_the_verdict(sides) -> None:
    tests, answer, theirs, its = sides
    its.sendall(frame(b"a", b"four"))
    theirs.sendall(frame(b"q", b"twice two?") + frame(b"v", b"passed"))
    assert relay(tests, answer) == "passed"
    assert (its.recv(100), theirs.recv(100)) == (frame(b"q", b"twice two?"), frame(b"a", b"four"))


def test_a_verdict_frame_from_the_candidate_is_an_exception_for_the_judge(sides) -> None:
    tests, answer, theirs, its = sides
    its.sendall(frame(b"v", b"passed"))
    theirs.sendall(frame(b"q", b"") + frame(b"v", b"failed"))
    assert relay(tests, answer) == "failed"
    assert theirs.recv(100) == frame(b"e", b"passed")


def test_a_candidate_that_closes_its_socket_has_ended(sides) -> None:
    tests, answer, theirs, its = sides
    theirs.sendall(frame(b"q", b""))
    its.close()
    with pytest.raises(EndedError):
        relay(tests, answer)


def test_a_judge_that_ends_without_a_verdict_is_another_error_than_a_candidate_that_ends(sides) -> None:
    tests, answer, theirs, _ = sides
    theirs.close()
    with pytest.raises(NoVerdictError):
        relay(tests, answer)


@pytest.mark.parametrize("size", [0, (8 << 20) + 1, 0xFFFFFFFF])
def test_a_frame_of_an_impossible_size_counts_as_the_end_of_its_sender(sides, size: int) -> None:
    _, answer, _, its = sides
    its.sendall(struct.pack("<I", size) + b"a")
    with pytest.raises(EndedError):
        answer.receive()


def test_a_peer_that_sends_nothing_is_late(sides) -> None:
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
    peer = Peer(here, [reader], kept_bytes=10, deadline=time.monotonic() + 60)

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
