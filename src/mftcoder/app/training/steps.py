"""The steps of a run as tensors, for training loops outside this package."""

from collections.abc import Iterator

from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.loader import StepData, TrainLoader
from mftcoder.data.prepared.store import prepare as prepare_store
from mftcoder.log import OnProgress, no_progress


def training_steps(config: RunConfig, *, on_progress: OnProgress = no_progress) -> Iterator[StepData]:
    """The steps of `train` in one process, in the same order. Prepares the data first if necessary.

    A step has `micro_batches`, whose tensors [B, L] are input_ids, targets (already shifted, -100 where nothing is trained),
    position_ids (0 starts a sample) and task_ids (-1 on padding), and `counts` of the whole step.
    """
    return TrainLoader(prepare_store(config, on_progress=on_progress), config).steps()
