"""The backend that needs no choice: one device for one process, a whole model on each of several; DeepSpeed where accelerate launches it."""

from mftcoder.config.compat.accelerate_deepspeed import deepspeed_backend, launched_with_deepspeed
from mftcoder.config.schema import BackendConfig
from mftcoder.registry import BACKENDS
from mftcoder.training.backends.base import Backend, LocalBackend
from mftcoder.training.backends.ddp import DdpBackend
from mftcoder.training.backends.process_group import launched_processes


def auto_backend(config: BackendConfig) -> Backend:
    """LocalBackend without a launcher, DdpBackend with one, that of its flags with `accelerate launch --use_deepspeed`."""
    if launched_with_deepspeed():
        told = config.model_copy(update=deepspeed_backend())
        backend: Backend = BACKENDS.load(told.name)(told)
        return backend
    return LocalBackend(config) if launched_processes() == 1 else DdpBackend(config)
