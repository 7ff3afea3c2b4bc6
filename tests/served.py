"""A real `mft serve` process for tests, and the official client for it."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Server:
    """A running server."""

    process: "subprocess.Popen[str]"
    url: str
    told: list[str]

    def stop(self) -> int:
        """Send SIGTERM and wait; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)


@contextmanager
def served(model: Path, *options: object, **environment: str) -> Iterator[Server]:
    """`mft serve MODEL` on a free port, until the block ends."""
    words = [sys.executable, "-m", "mftcoder", "serve", str(model), "--port", "0", *map(str, options)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=variables)
    assert process.stderr is not None
    told: list[str] = []
    try:
        for line in process.stderr:
            told.append(line.rstrip())
            if found := re.search(r"serving (http://\S+)/v1", line):
                break
        else:
            raise AssertionError("\n".join(told))
        rest = threading.Thread(target=lambda: told.extend(process.stderr or ()))
        rest.start()
        yield Server(process, found[1], told)
        process.kill()
        rest.join()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
