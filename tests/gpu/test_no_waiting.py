"""On a GPU the host runs ahead: a step waits for nothing, and reading a result waits for its own step alone."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.schema import BackendConfig, TrainConfig
from mftcoder.kernels.attention import register
from mftcoder.training.backend import LocalBackend
from mftcoder.training.host_copy import HostCopy
from mftcoder.training.language_model import LanguageModel
from mftcoder.training.objective import Objective
from mftcoder.training.optimizer import MasterAdamW
from mftcoder.training.step import train_step
from tests.unit.training.test_objective import VOCABULARY, samples, step_data

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
A_LONG_TIME = 4_000_000_000  # clock cycles of the device: seconds


def test_reading_a_result_does_not_wait_for_what_came_after_it() -> None:
    numbers = torch.arange(5, dtype=torch.float64, device="cuda") * 2
    copy = HostCopy(numbers)
    torch.cuda._sleep(A_LONG_TIME)
    assert copy.read().tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert not torch.cuda.current_stream().query()  # the device is still busy
    numbers.zero_()
    torch.cuda.synchronize()
    assert copy.read().tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize("implementation", ["varlen", "segments"])
def test_nothing_in_a_step_waits_for_the_device(implementation: str) -> None:
    register()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=implementation, use_cache=False,
    )  # fmt: skip
    model = LanguageModel(
        LlamaForCausalLM(config).to("cuda", torch.bfloat16), attn_implementation=implementation, num_tasks=2
    )
    settings = TrainConfig(learning_rate=1e-3)
    optimizer = MasterAdamW(model.module.named_parameters(), settings)
    backend, weights = LocalBackend(BackendConfig(device="cuda")), TaskWeights(np.ones(2))
    steps = [step_data(samples(), 2).pin_memory() for _ in range(5)]
    results = []
    for number, data in enumerate(steps):
        torch.cuda.set_sync_debug_mode("error" if number >= 2 else "default")  # the first ones compile and allocate
        try:
            results.append(train_step(model, data, weights, Objective(), optimizer, 1e-3, backend))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    losses = [result.objective for result in results]
    assert all(result.finite for result in results) and losses[-1] < losses[0]
