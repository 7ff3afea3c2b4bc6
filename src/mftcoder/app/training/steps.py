"""The steps of a run as tensors, for training loops outside this package."""

from collections.abc import Iterator

from torch.utils.data import get_worker_info

from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.loader import StepData, TrainLoader
from mftcoder.data.prepared.store import prepare as prepare_store
from mftcoder.errors import ConfigError
from mftcoder.log import OnProgress, no_progress


def training_steps(config: RunConfig, *, on_progress: OnProgress = no_progress) -> Iterator[StepData]:
    """The steps of `train` in one process, in the same order. Prepares the data first if necessary.

    A step has `micro_batches`, whose tensors [B, L] are input_ids, targets (already shifted, -100 where nothing is trained),
    position_ids (0 starts a sample) and task_ids (-1 on padding), and `counts` of the whole step. ConfigError in one of several
    workers of a DataLoader: each would give all steps.
    """
    worker = get_worker_info()
    if worker is not None and worker.num_workers > 1:
        raise ConfigError(f"training_steps: each of {worker.num_workers} workers would give all steps; use one or none")
    return TrainLoader(prepare_store(config, on_progress=on_progress), config).steps()
