"""Messages between two ends of a socket: complete, in order, bounded; a closed end is noticed."""

import json
import os
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mftcoder.execution.channel import Channel, ChannelClosedError, MessageTooLargeError, pair

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    here, there = (Channel(end, limit=1 << 16) for end in pair())
    yield here, there
    here.close()
    there.close()


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_values_arrive_whole_and_in_order(values: list[object]) -> None:
    here, there = map(Channel, pair())
    for value in values:
        here.send(value)
    assert [there.receive() for _ in values] == values
    here.close(), there.close()


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_a_message_that_arrives_in_pieces_is_joined(ends: tuple[Channel, Channel], piece: int) -> None:
    here, there = ends
    payloads = [json.dumps(value).encode() for value in ({"a": [1, 2]}, "x" * 90)]
    data = b"".join(struct.pack("!I", len(payload)) + payload for payload in payloads)
    for start in range(0, len(data), piece):
        here.socket.sendall(data[start : start + piece])
    assert (there.receive(), there.receive()) == ({"a": [1, 2]}, "x" * 90)
    assert there.received == sum(map(len, payloads))


def test_a_message_beyond_the_limit_is_refused_before_it_is_read(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    here.socket.sendall(struct.pack("!I", (1 << 16) + 1))
    with pytest.raises(MessageTooLargeError, match="65537 bytes; the limit is 65536"):
        there.receive()


@pytest.mark.parametrize("sent", [b"", b"\0\0", struct.pack("!I", 10) + b"[1"])
def test_a_closed_end_is_noticed_at_any_point_of_a_message(ends: tuple[Channel, Channel], sent: bytes) -> None:
    here, there = ends
    here.socket.sendall(sent)
    here.close()
    with pytest.raises(ChannelClosedError):
        there.receive()
    with pytest.raises(ChannelClosedError):
        there.send([])


def test_descriptors_travel_beside_a_message_and_are_open_there(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    reader, writer = os.pipe()
    here.send({"operation": "fork"}, [writer])
    os.close(writer)
    message, [received] = there.receive_with_descriptors()
    os.write(received, b"through it")
    os.close(received)
    assert message == {"operation": "fork"} and os.read(reader, 100) == b"through it"
    os.close(reader)


def test_a_message_without_descriptors_has_none(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    here.send([1])
    assert there.receive_with_descriptors() == ([1], [])
    here.close()
    with pytest.raises(ChannelClosedError):
        there.receive_with_descriptors()


def test_both_ends_of_a_pair_are_streams() -> None:
    first, second = pair()
    with first, second:
        assert {first.type, second.type} == {socket.SOCK_STREAM}
