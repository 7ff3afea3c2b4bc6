"""The backend `auto`: one device for one process, DDP for several, DeepSpeed if accelerate launches it."""

from mftcoder.config.compat.accelerate_deepspeed import deepspeed_backend, launched_with_deepspeed
from mftcoder.config.schema import BackendConfig
from mftcoder.registry import BACKENDS
from mftcoder.training.backends.base import Backend, LocalBackend
from mftcoder.training.backends.ddp import DdpBackend
from mftcoder.training.backends.process_group import launched_processes


def auto_backend(config: BackendConfig) -> Backend:
    """LocalBackend for one process, DdpBackend for several; with `accelerate launch --use_deepspeed` the one that its flags name."""
    if launched_with_deepspeed():
        launched = config.model_copy(update=deepspeed_backend())
        backend: Backend = BACKENDS.load(launched.name)(launched)
        return backend
    return LocalBackend(config) if launched_processes() == 1 else DdpBackend(config)
