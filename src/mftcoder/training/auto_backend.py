"""The backend that needs no choice: one device for one process, a whole model on each of several."""

from mftcoder.config.schema import BackendConfig
from mftcoder.training.backend import Backend, LocalBackend
from mftcoder.training.ddp_backend import DdpBackend
from mftcoder.training.process_group import launched_processes


def auto_backend(config: BackendConfig) -> Backend:
    """LocalBackend without a launcher, DdpBackend with one."""
    return LocalBackend(config) if launched_processes() == 1 else DdpBackend(config)
