"""`mft train --nproc N`: start the processes of a run with torch's elastic launcher, and exit with their exit code."""

import os
import signal
import sys
from collections.abc import Sequence

from mftcoder.errors import REQUEUE_CODE, ConfigError

SECONDS_TO_SAVE = "60"
"""Seconds that a stopped run has for its checkpoint before its processes are killed. $TORCH_ELASTIC_SHUTDOWN_TIMEOUT overrides it."""


def launch(arguments: Sequence[str], nproc: int, *, nnodes: str, rdzv: str | None, max_restarts: int) -> None:
    """Run `mft ARGUMENTS` in `nproc` processes of this machine. Exit with the workers' code: 2 for a mistake, 75 or 130 for a stop
    after a clean save.

    `nnodes` is the number of machines, or `min:max` for a run that continues while machines join and leave; they meet at `rdzv`, a
    host:port that is the same on each. After a failure the run restarts from its last checkpoint, `max_restarts` times.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if nnodes != "1" and not rdzv:
        raise ConfigError("--nnodes: several machines need --rdzv host:port, the same on each, to find each other")
    # Otherwise restarted processes would find the keys of the processes before them.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_SAVE)
    size = [f"--nproc-per-node={nproc}", f"--nnodes={nnodes}", f"--max-restarts={max_restarts}"]
    place = ["--rdzv-backend=c10d", f"--rdzv-endpoint={rdzv}", "--rdzv-id=mftcoder"] if rdzv else ["--standalone"]
    try:
        torchrun.run(torchrun.parse_args([*size, *place, "-m", "mftcoder", *arguments]))
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        sys.exit(codes.pop() if codes in ({2}, {130}, {REQUEUE_CODE}) else 1)
    except SignalException as stopped:
        sys.exit(130 if stopped.sigval == signal.SIGINT else REQUEUE_CODE)
