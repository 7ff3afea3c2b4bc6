"""The load-balancing loss of Mixtral and Qwen-MoE: its value, its factor, its independence of padding and layout."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from mftcoder.balancing.base import TaskWeights
from mftcoder.config.schema import AdapterConfig, BackendConfig, TrainConfig
from mftcoder.data.batches.loader import StepData
from mftcoder.models.gpu_memory.recompute import Recomputation, recompute_layers
from mftcoder.models.layers.adapters import attach, trainable_parameters
from mftcoder.training.backends.base import LocalBackend
from mftcoder.training.backends.process_group import OneProcess
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.losses.objective import Objective
from mftcoder.training.losses.router_loss import RouterTerm
from mftcoder.training.optimizer import MasterAdamW
from mftcoder.training.step import StepResult, train_step
from tests.unit.training.losses.test_objective import VOCABULARY, language_model, samples, step_data

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3,
    "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02, "attn_implementation": "segments", "use_cache": False,
}  # fmt: skip
WEIGHTS = TaskWeights(np.array([1.0, 3.0]))
FAMILIES = ["mixtral", "qwen2_moe"]


def experts_model(family: str, adapter: AdapterConfig | None = None) -> LanguageModel:
    torch.manual_seed(3)
    module: Any
    if family == "mixtral":
        module = MixtralForCausalLM(MixtralConfig(**COMMON, intermediate_size=32, num_local_experts=4))
    else:
        sizes = {"intermediate_size": 32, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
        module = Qwen2MoeForCausalLM(Qwen2MoeConfig(**COMMON, **sizes, num_experts=4))
    module = attach(module, adapter) if adapter else module
    return LanguageModel(module, attn_implementation="segments", num_tasks=2)


def step(data: StepData, model: LanguageModel, coefficient: float | None = None) -> StepResult:
    optimizer = MasterAdamW(trainable_parameters(model.module), TrainConfig())
    objective = Objective(router_aux_loss_coef=coefficient)
    return train_step(model, data, WEIGHTS, objective, optimizer, 0.0, LocalBackend(BackendConfig(device="cpu")))


def written(model: LanguageModel, data: StepData) -> float:
    """E * sum_e f_e P_e over all layers and real tokens of the step's one micro-batch, from the routers' own logits."""
    (batch,) = data.micro_batches
    logits: list[torch.Tensor] = []
    gates = [module for module in model.causal_lm.modules() if type(module).__name__.endswith("TopKRouter")]
    hooks = [gate.register_forward_hook(lambda _, __, output: logits.append(output[0])) for gate in gates]
    with torch.no_grad():
        model.hidden_states(batch.input_ids, batch.position_ids)
    for hook in hooks:
        hook.remove()
    real = (batch.task_ids >= 0).flatten()
    probabilities = torch.cat([layer[real].softmax(-1) for layer in logits])  # [layers * tokens, E]
    chosen = torch.nn.functional.one_hot(probabilities.topk(2, dim=-1).indices, 4).sum(1).float()
    return float(4 * (chosen.mean(0) * probabilities.mean(0)).sum())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["packed", "padded", "dynamic"])
def test_a_step_of_one_micro_batch_has_the_published_loss_without_padding(family: str, layout: str) -> None:
    data, model = step_data(samples(), 1, layout), experts_model(family)
    assert step(data, model).router_loss == pytest.approx(written(experts_model(family), data), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_objective_holds_it_with_the_published_coefficient(family: str) -> None:
    data = step_data(samples(), 1)
    kept, left_out = step(data, experts_model(family)), step(data, experts_model(family), 0.0)
    assert left_out.router_loss is None and kept.router_loss is not None
    assert kept.objective == pytest.approx(left_out.objective + 0.02 * kept.router_loss, rel=1e-6)
    doubled = step(data, experts_model(family), 0.04)
    assert doubled.objective == pytest.approx(left_out.objective + 0.04 * kept.router_loss, rel=1e-6)
    np.testing.assert_allclose(kept.losses.loss_sum, left_out.losses.loss_sum)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_split_step_has_the_token_weighted_mean_of_its_parts(family: str) -> None:
    data = step_data(samples(), 3)
    parts = [StepData((batch,), data.counts) for batch in data.micro_batches]
    values = [written(experts_model(family), part) for part in parts]
    tokens = [int((batch.task_ids >= 0).sum()) for batch in data.micro_batches]
    assert len(values) == 3 and tokens[0] != tokens[-1]
    assert step(data, experts_model(family)).router_loss == pytest.approx(np.average(values, weights=tokens), rel=1e-5)


def test_a_step_knows_its_tokens_without_communication() -> None:
    class Alone(OneProcess):
        world_size = 2

        def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the ranks wait for each other")

    data, router = step_data(samples(), 2), experts_model("mixtral").router
    backend = LocalBackend(BackendConfig(device="cpu"))
    backend.group = Alone(backend.config)
    term = RouterTerm(router, 0.5, data, backend)
    assert sum(term.weight(batch) for batch in data.micro_batches) == pytest.approx(0.5)


def test_micro_batches_that_are_alike_count_as_one() -> None:
    one = step_data(samples(), 1)
    (batch,) = one.micro_batches
    many = StepData((batch, batch, batch), replace(one.counts, positions=3 * one.counts.positions))
    expected = step(one, experts_model("mixtral")).router_loss
    assert step(many, experts_model("mixtral")).router_loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("setting", [False, "selective", True])
def test_its_gradient_reaches_what_trains(setting: bool | str) -> None:
    """The gradient of the whole objective less that without it is the coefficient times the loss's own, here by autograd."""
    data = step_data(samples(), 1)
    found = []
    for weight in (0.0, 0.5):
        model = experts_model("mixtral")
        recompute_layers(model.decoder_layers(), Recomputation.of(setting))
        model.module.train()
        (batch,) = data.micro_batches
        model.losses(batch, torch.ones(batch.targets.shape), router_weight=weight).objective.backward()
        gate = next(p for name, p in model.module.named_parameters() if name.endswith("gate.weight"))
        assert gate.grad is not None
        found.append(gate.grad.clone())
    model = experts_model("mixtral")
    output = model._decode(batch.input_ids, batch.position_ids, output_router_logits=True)
    assert model.router is not None
    model.router(output.router_logits, batch.task_ids >= 0).backward()
    gate = next(p for name, p in model.module.named_parameters() if name.endswith("gate.weight"))
    assert gate.grad is not None
    torch.testing.assert_close(found[1] - found[0], 0.5 * gate.grad, rtol=1e-3, atol=1e-6)
    assert gate.grad.abs().max() > 0


def test_lora_over_experts_keeps_it() -> None:
    result = step(step_data(samples(), 2), experts_model("mixtral", AdapterConfig(lora_rank=2)))
    assert (
        result.router_loss is not None and 1.5 < result.router_loss < 4
    )  # 2, the choices a token, where all are chosen alike


def test_a_model_without_experts_has_none() -> None:
    assert language_model().router is None
    assert step(step_data(samples(), 2), language_model()).router_loss is None
