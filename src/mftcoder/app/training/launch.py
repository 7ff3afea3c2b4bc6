"""`mft train --nproc N`: start the processes of a run with torch's elastic launcher, and exit with their exit code."""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mftcoder.errors import REQUEUE_CODE, ConfigError

SECONDS_TO_SAVE = "60"
"""Seconds that a stopped run has for its checkpoint before its processes are killed. $TORCH_ELASTIC_SHUTDOWN_TIMEOUT overrides it."""


@dataclass(frozen=True)
class LaunchOptions:
    """How a run is distributed."""

    nproc: int
    """Processes on this machine."""
    nnodes: str = "1"
    """Number of machines, or `min:max` for a run that continues while machines join and leave."""
    rdzv: str | None = None
    """host:port where the machines meet, the same on each."""
    max_restarts: int = 0
    """How many times the run restarts from its last checkpoint after a failure."""


def launch(arguments: Sequence[str], options: LaunchOptions) -> None:
    """Run `mft ARGUMENTS` in each process. Exit with the workers' code: 2 for a mistake, 75 or 130 for a stop after a clean save."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if options.nnodes != "1" and not options.rdzv:
        raise ConfigError("--nnodes: several machines need --rdzv host:port, the same on each, to find each other")
    # Otherwise restarted processes would find the keys of the processes before them.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_SAVE)
    try:
        torchrun.run(torchrun.parse_args([*_torchrun_options(options), "-m", "mftcoder", *arguments]))
    except ChildFailedError as error:
        codes = {failure.exitcode for failure in error.failures.values()}
        sys.exit(codes.pop() if codes in ({2}, {130}, {REQUEUE_CODE}) else 1)
    except SignalException as stopped:
        sys.exit(130 if stopped.sigval == signal.SIGINT else REQUEUE_CODE)


def _torchrun_options(options: LaunchOptions) -> list[str]:
    given = [
        f"--nproc-per-node={options.nproc}",
        f"--nnodes={options.nnodes}",
        f"--max-restarts={options.max_restarts}",
    ]
    if options.rdzv is None:
        return [*given, "--standalone"]
    return [*given, "--rdzv-backend=c10d", f"--rdzv-endpoint={options.rdzv}", "--rdzv-id=mftcoder"]
