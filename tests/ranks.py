"""Two real processes that have joined as the ranks of a backend, and run what a test asks of both at once."""

import os
import pickle
import random
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from mftcoder.config.schema import BackendConfig
from mftcoder.errors import MftError
from mftcoder.training.backends.ddp import DdpBackend
from mftcoder.training.backends.fsdp2 import Fsdp2Backend
from tests.forked import PATIENCE, context, finish

BACKENDS: dict[str, Any] = {"ddp": DdpBackend, "fsdp2": Fsdp2Backend}
Ask = Callable[..., list[Any]]


def free_port() -> int:
    """Below the ports that the system hands out by itself, and in this worker's thousand: nobody takes it between here and its use."""
    begin = 15000 + 1000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 15)
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(begin, begin + 1000)))
            return int(probe.getsockname()[1])


@contextmanager
def two_ranks(name: str, **fields: Any) -> Iterator[Ask]:
    """`ask(function, *arguments)`: what `function(backend, *arguments)` gives on each rank, by rank; an MftError as a value.

    The function must be one of a module, and both ranks must come to the same collectives in it. Tensors are copied on their
    way: `Connection.send` would put them into memory that all processes share.
    """
    config, port = BackendConfig(name=name, device="cpu", **fields), free_port()
    ends = [Pipe() for _ in range(2)]
    processes = [
        context().Process(target=_be_rank, args=(rank, port, config, there)) for rank, (_, there) in enumerate(ends)
    ]
    for process in processes:
        process.start()

    def ask(function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for here, _ in ends:
            here.send_bytes(pickle.dumps((function, arguments)))
        return [_answer(here) for here, _ in ends]

    try:
        yield ask
    finally:
        for here, _ in ends:
            here.send_bytes(pickle.dumps(None))
        assert [finish(process) for process in processes] == [0, 0]


def _answer(connection: Connection) -> Any:
    assert connection.poll(PATIENCE), "a rank hangs"
    answer, problem = pickle.loads(connection.recv_bytes())
    assert not problem, problem
    return answer


def _be_rank(rank: int, port: int, config: BackendConfig, connection: Connection) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    backend = BACKENDS[config.name](config)
    with backend.group.joined():
        while asked := pickle.loads(connection.recv_bytes()):
            connection.send_bytes(pickle.dumps(_answer_to(asked, backend)))


def _answer_to(asked: tuple[Callable[..., Any], tuple[Any, ...]], backend: Any) -> tuple[Any, str | None]:
    function, arguments = asked
    try:
        return function(backend, *arguments), None
    except MftError as error:
        return error, None
    except Exception:
        return None, traceback.format_exc()
