"""What the tests' process and the answer's process say to each other, carried by the worker between them.

Goes in: two sockets. Comes out: the tests' verdict. A frame is its length in four bytes, its kind in one, and a body that only the
two processes understand. Kinds: `q` a question, `a` its answer, `e` the exception it ended in, `v` the verdict. The two never hold
each other's end, so either may break its own without a byte of the other's.
"""

import contextlib
import os
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

_LENGTH = struct.Struct("<I")
_LARGEST = 8 << 20  # bytes of a frame
_CHUNK = 1 << 16


class EndedError(Exception):
    """The process has closed its end, or has sent what no frame can be."""


class LateError(Exception):
    """The deadline has passed."""


@dataclass
class Peer:
    """One of the two processes. What it writes to `outputs` is read meanwhile, and the first `kept_bytes` of each are kept."""

    end: socket.socket
    outputs: Sequence[int] = ()
    kept_bytes: int = 0
    deadline: float = 0.0  # of time.monotonic()
    texts: dict[int, bytearray] = field(default_factory=dict)
    _buffer: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.end, selectors.EVENT_READ)
        for descriptor in self.outputs:
            self.texts[descriptor] = bytearray()
            self._selector.register(descriptor, selectors.EVENT_READ)

    def send(self, kind: bytes, body: bytes) -> None:
        """Send one frame. A process that does not read is late, one that has gone has ended."""
        try:
            self.end.settimeout(max(0.001, self.deadline - time.monotonic()))
            self.end.sendall(_LENGTH.pack(len(body) + 1) + kind + body)
        except TimeoutError as error:
            raise LateError from error
        except ConnectionError as error:
            raise EndedError from error

    def offer(self, kind: bytes, body: bytes) -> None:
        """Send a frame to a process that may have gone already; the next `receive` says so."""
        with contextlib.suppress(EndedError, LateError):
            self.send(kind, body)

    def receive(self) -> tuple[bytes, bytes]:
        """Kind and body of the next frame."""
        size = _LENGTH.unpack(self._take(_LENGTH.size))[0]
        if not 0 < size <= _LARGEST:
            raise EndedError
        frame = self._take(size)
        return frame[:1], frame[1:]

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._read_once()
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def _read_once(self) -> None:
        left = self.deadline - time.monotonic()
        ready = self._selector.select(left) if left > 0 else []
        if not ready:
            raise LateError
        for key, _ in ready:
            if key.fileobj is not self.end:
                self._keep(key.fd)
        if any(key.fileobj is self.end for key, _ in ready):
            try:
                data = self.end.recv(_CHUNK)
            except ConnectionError as error:
                raise EndedError from error
            if not data:
                raise EndedError
            self._buffer += data

    def _keep(self, descriptor: int) -> None:
        data = os.read(descriptor, _CHUNK)
        if not data:
            self._selector.unregister(descriptor)
        kept = self.texts[descriptor]
        kept += data[: self.kept_bytes - len(kept)]

    def drain(self) -> tuple[str, ...]:
        """All that is left in the outputs of a process that has ended, and their texts."""
        for descriptor in self.outputs:
            os.set_blocking(descriptor, False)
            try:
                while data := os.read(descriptor, _CHUNK):
                    self.texts[descriptor] += data[: self.kept_bytes - len(self.texts[descriptor])]
            except BlockingIOError:
                pass
        return tuple(text.decode(errors="replace") for text in self.texts.values())

    def close(self) -> None:
        """Hang up."""
        self._selector.close()
        self.end.close()
        for descriptor in self.outputs:
            os.close(descriptor)


class NoVerdictError(Exception):
    """The tests' process has gone without a verdict."""


def carry(tests: Peer, answer: Peer) -> str:
    """Carry questions and answers until the tests have a verdict. EndedError and LateError are the answer's."""
    while True:
        try:
            kind, body = tests.receive()
        except EndedError as error:
            raise NoVerdictError from error
        if kind == b"v":
            return body.decode(errors="replace")
        answer.send(kind, body)
        kind, body = answer.receive()
        try:
            tests.send(kind if kind in (b"a", b"e") else b"e", body)
        except EndedError as error:
            raise NoVerdictError from error
