"""Messages between the processes of the sandbox: a length, then JSON; file descriptors travel beside it.

The format is JSON and nothing richer, because the other side may be a hostile program: reading its message must not run anything.
"""

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

_LENGTH = struct.Struct("!I")
_MAX_DESCRIPTORS = 8
_CHUNK = 1 << 16
_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


class ChannelClosedError(Exception):
    """The other process ended or closed its end."""


class MessageTooLargeError(Exception):
    """A message is larger than the reader's limit."""


class Channel:
    """One end of a stream socket. `limit` bounds the bytes of a received message. Has no timeout: deadlines are left to the caller."""

    def __init__(self, end: socket.socket, *, limit: int = 64 << 20):
        self.socket = end
        self.limit = limit
        self.received = 0  # bytes of all messages
        self._buffer = b""

    def send(self, value: Any, descriptors: Sequence[int] = ()) -> None:
        """Send one message; ChannelClosedError if the other side has gone."""
        payload = _encode(value).encode("ascii")
        data = _LENGTH.pack(len(payload)) + payload
        try:
            if descriptors:
                sent = socket.send_fds(self.socket, [data], list(descriptors))
                data = data[sent:]
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionError) as error:
            raise ChannelClosedError from error

    def receive(self) -> Any:
        self._fill(_LENGTH.size)
        size = _LENGTH.unpack_from(self._buffer)[0]
        if size > self.limit:
            raise MessageTooLargeError(f"a message of {size} bytes; the limit is {self.limit}")
        self.received += size
        self._fill(_LENGTH.size + size)
        message = self._buffer[_LENGTH.size : _LENGTH.size + size]
        self._buffer = self._buffer[_LENGTH.size + size :]
        return json.loads(message)

    def receive_with_descriptors(self) -> tuple[Any, list[int]]:
        """The next message and the file descriptors sent with it. The other side sends one message at a time."""
        descriptors: list[int] = []
        while not self._buffer:
            data, descriptors, _, _ = socket.recv_fds(self.socket, _CHUNK, _MAX_DESCRIPTORS)
            if not data:
                raise ChannelClosedError
            self._buffer = data
        return self.receive(), descriptors

    def close(self) -> None:
        self.socket.close()

    def _fill(self, size: int) -> None:
        """Read until the buffer holds `size` bytes; usually one read per message."""
        if len(self._buffer) >= size:
            return
        chunks, missing = [self._buffer], size - len(self._buffer)
        while missing > 0:
            try:
                chunk = self.socket.recv(_CHUNK)
            except ConnectionError as error:
                raise ChannelClosedError from error
            if not chunk:
                raise ChannelClosedError
            chunks.append(chunk)
            missing -= len(chunk)
        self._buffer = b"".join(chunks)


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
