"""The frames that the worker passes between the judge's process and the candidate's process.

A frame is its length (4 bytes), its kind (1 byte) and a body that only the two processes understand. Kinds: `q` a question, `a` its
answer, `e` the exception that it raised, `v` the verdict. Neither process holds the other's socket, so neither can disturb what the
other sends.
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
    """The process closed its socket, or sent bytes that are not a frame."""


class LateError(Exception):
    """The deadline has passed."""


@dataclass
class Peer:
    """The worker's end of one process. Also reads the process's `outputs`, and keeps the first `kept_bytes` of each."""

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
        """Send one frame; LateError if the process does not read it in time, EndedError if the process has ended."""
        try:
            self.end.settimeout(max(0.001, self.deadline - time.monotonic()))
            self.end.sendall(_LENGTH.pack(len(body) + 1) + kind + body)
        except TimeoutError as error:
            raise LateError from error
        except ConnectionError as error:
            raise EndedError from error

    def offer(self, kind: bytes, body: bytes) -> None:
        """Send a frame to a process that may have ended already; if it has, the next `receive` raises."""
        with contextlib.suppress(EndedError, LateError):
            self.send(kind, body)

    def receive(self) -> tuple[bytes, bytes]:
        """The kind and the body of the next frame."""
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
        """The texts of the outputs, after reading what is left in them. The process has ended."""
        for descriptor in self.outputs:
            os.set_blocking(descriptor, False)
            try:
                while data := os.read(descriptor, _CHUNK):
                    self.texts[descriptor] += data[: self.kept_bytes - len(self.texts[descriptor])]
            except BlockingIOError:
                pass
        return tuple(text.decode(errors="replace") for text in self.texts.values())

    def close(self) -> None:
        self._selector.close()
        self.end.close()
        for descriptor in self.outputs:
            os.close(descriptor)


class NoVerdictError(Exception):
    """The judge's process ended without a verdict."""


def relay(tests: Peer, candidate: Peer, answers: list[bytes] | None = None) -> str:
    """Pass questions and answers on until the judge sends its verdict. EndedError means the candidate, LateError either.

    `answers` gets each frame of the candidate.
    """
    while True:
        try:
            kind, body = tests.receive()
        except EndedError as error:
            raise NoVerdictError from error
        if kind == b"v":
            return body.decode(errors="replace")
        candidate.send(kind, body)
        kind, body = candidate.receive()
        if answers is not None:
            answers.append(kind + body)
        try:
            tests.send(kind if kind in (b"a", b"e") else b"e", body)
        except EndedError as error:
            raise NoVerdictError from error
