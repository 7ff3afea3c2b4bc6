"""On a GPU the host runs ahead: a step waits for nothing, and reading a result waits for its own step alone.

The CPU has nothing to wait for; what its twin holds is that the same steps learn. Where the host would wait is also seen
without a GPU: tests/gpu/test_fake_cuda.py.
"""

from pathlib import Path

import pytest
import torch

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.schema import BackendConfig
from mftcoder.kernels.attention import candidates
from mftcoder.models.layers.adapters import trainable_parameters
from mftcoder.training.backends.base import LocalBackend
from mftcoder.training.losses.objective import Objective
from mftcoder.training.step import HostCopy, train_step
from tests.gpu.small import TRAIN, WEIGHTS, language_model, samples, step_data

A_LONG_TIME = 4_000_000_000  # clock cycles of the device: seconds


def test_a_result_is_read_as_it_was_whatever_came_after_it(device: torch.device) -> None:
    numbers = torch.arange(5, dtype=torch.float64, device=device) * 2
    copy = HostCopy(numbers)
    if device.type == "cuda":
        torch.cuda._sleep(A_LONG_TIME)
    assert copy.read().tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    if device.type == "cuda":
        assert not torch.cuda.current_stream().query()  # the device is still busy
        numbers.zero_()
        torch.cuda.synchronize()
        assert copy.read().tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize("implementation", ["varlen", "segments"])
@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_nothing_in_a_step_waits_for_the_device(
    small_llama: Path, device: torch.device, implementation: str, adapter: str
) -> None:
    if implementation not in candidates(device):
        pytest.skip(f"auto never picks {implementation} on {device}")
    model = language_model(small_llama, device, torch.bfloat16, adapter=adapter, implementation=implementation)
    backend = LocalBackend(BackendConfig(device=device.type))  # type: ignore[arg-type]
    optimizer = backend.optimizer(trainable_parameters(model.module), TRAIN)
    weights: TaskWeights = WEIGHTS
    steps = [step_data(samples(seed=6), 2)] * 5
    results = []
    for number, data in enumerate(steps):
        data = data.pin_memory() if device.type == "cuda" else data
        if device.type == "cuda" and number >= 2:  # the first ones compile and allocate
            torch.cuda.set_sync_debug_mode("error")
        try:
            results.append(train_step(model, data, weights, Objective(), optimizer, TRAIN.learning_rate, backend))
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    losses = [result.objective for result in results]
    assert all(result.finite for result in results) and losses[-1] < losses[0]
