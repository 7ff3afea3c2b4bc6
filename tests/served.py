"""A real `mft serve` process for tests, forked from a server that has imported torch."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.forked import finish, start


@dataclass
class Server:
    """A running server."""

    process: BaseProcess
    url: str
    told: list[str]
    """Lines of standard error up to the address."""

    def stop(self) -> int:
        """Send SIGTERM and wait; the exit code."""
        self.process.terminate()
        return finish(self.process)


@contextmanager
def served(model: Path, *options: object, **environment: str) -> Iterator[Server]:
    """`mft serve MODEL` on a free port, until the block ends."""
    with TemporaryDirectory() as folder:
        output = Path(folder, "server")
        process = start(("serve", model, "--port", "0", *options), output, environment)
        try:
            yield _when_it_listens(process, output.with_suffix(".err"))
        finally:
            process.kill()
            process.join()


def _when_it_listens(process: BaseProcess, errors: Path) -> Server:
    while True:
        alive = process.is_alive()
        told = errors.read_text() if errors.exists() else ""
        if found := re.search(r"serving (http://\S+)/v1 .*\n", told):
            return Server(process, found[1], told.splitlines())
        assert alive, told
        time.sleep(0.02)
