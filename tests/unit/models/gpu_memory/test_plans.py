"""The plan for a GPU is the fastest that fits, on models and GPUs with known answers."""

from typing import Any

import pytest
from transformers import LlamaConfig, Qwen2Config

from mftcoder.config.load import parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError
from mftcoder.models.gpu_memory import plans as memory
from mftcoder.models.gpu_memory.plans import (
    USABLE,
    MemoryPlan,
    estimate_memory,
    fastest_that_fits,
    memory_plans,
    next_card,
    not_faster_than,
    plan_model,
)

GIB = 2**30
QWEN_1_5B = Qwen2Config(
    vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
    num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip
QWEN_7B = Qwen2Config(
    vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
    num_key_value_heads=4, tie_word_embeddings=False,
)  # fmt: skip
SMALL = LlamaConfig(
    vocab_size=1000, hidden_size=64, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2
)  # fmt: skip


def run_config(**sections: Any) -> RunConfig:
    raw: dict[str, Any] = {"model": {"model_name_or_path": "m"}, "tasks": {"t": "d"}, "output_dir": "o"}
    for name, value in sections.items():
        raw[name] = {**raw.get(name, {}), **value}
    return parse_config(raw, origin="test")


def plan_for(config: RunConfig, model: Any, gigabytes: int) -> MemoryPlan:
    """The plan of a run on a card of this size; it must fit."""
    plans = memory_plans(config, plan_model(config, model), "cuda")
    fitting = fastest_that_fits(plans, gigabytes * USABLE * GIB)
    assert fitting is not None, [(str(plan), plan.memory.total / GIB) for plan in plans]
    return plans[fitting]


@pytest.mark.parametrize("compiled", [False, True])
def test_full_training_of_1_5b_on_80_gb_recomputes_norms_and_swiglu(compiled: bool) -> None:
    config = run_config(
        adapter={"type": "full"},
        data={"max_length": 4096},
        train={"per_device_train_batch_size": 8, "torch_compile": compiled},
    )
    assert plan_for(config, QWEN_1_5B, 80).config.train.gradient_checkpointing == "selective"
    assert plan_for(config, QWEN_1_5B, 141).config.train.gradient_checkpointing is False


def test_a_published_measurement_is_reproduced() -> None:
    """77 GiB at the peak of a loop that holds 1.5B weights and moments in bfloat16, without masters, compiled (docs/scaling.md)."""
    config = run_config(
        adapter={"type": "full"},
        data={"max_length": 4096},
        train={"per_device_train_batch_size": 8, "torch_compile": True, "gradient_checkpointing": False},
    )
    found = estimate_memory(config, plan_model(config, QWEN_1_5B), "cuda")
    held = found.weights + found.moments // 2 // 2
    assert (held + found.activations + found.working + found.head) / GIB == pytest.approx(77, rel=0.05)


@pytest.mark.parametrize("length", [2048, 4096])
def test_lora_of_7b_fits_24_gb(length: int) -> None:
    config = run_config(data={"max_length": length})
    plan = plan_for(config, QWEN_7B, 24)
    assert plan.config.train.gradient_checkpointing not in (False, "auto")
    assert 14 < plan.memory.weights / GIB < 15


def test_qlora_of_7b_fits_24_gb_with_less_recomputation_than_lora() -> None:
    length = {"max_length": 2048}
    held = plan_for(run_config(data=length, model={"model_name_or_path": "m", "quantization": "4bit"}), QWEN_7B, 24)
    assert held.memory.weights / GIB == pytest.approx(5.4, abs=0.3)
    assert held.config.train.gradient_checkpointing in (False, "selective")


def test_plans_get_smaller_and_a_given_setting_has_one_plan() -> None:
    config = run_config(data={"max_length": 512})
    totals = [plan.memory.total for plan in memory_plans(config, plan_model(config, SMALL), "cuda")]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(totals) > 2
    settings = {"gradient_checkpointing": 0.5, "optim": "adamw"}
    given = run_config(train=settings, backend={"offload": "none"})
    assert [plan.config for plan in memory_plans(given, plan_model(given, SMALL), "cuda")] == [given]


def test_the_next_gpu_is_the_smallest_that_allows_a_faster_plan() -> None:
    config = run_config(adapter={"type": "full"}, data={"max_length": 4096}, train={"per_device_train_batch_size": 8})
    plans = memory_plans(config, plan_model(config, QWEN_1_5B), "cuda")
    found = next_card(plans, 80 * USABLE * GIB)
    assert found is not None
    size, plan = found
    assert size > 80 and plan.config.train.gradient_checkpointing is False
    assert next_card(plans, 1000 * GIB) is None


def test_accumulated_gradients_add_to_activations_and_are_float32() -> None:
    one = run_config(adapter={"type": "full"}, train={"gradient_checkpointing": True})
    many = run_config(
        adapter={"type": "full"}, train={"gradient_checkpointing": True, "gradient_accumulation_steps": 4}
    )
    model = plan_model(one, QWEN_1_5B)
    single, several = (estimate_memory(config, model, "cuda") for config in (one, many))
    assert several.gradients == 2 * single.gradients == 4 * model.count.trainable
    assert several.total > single.total


def test_8_bit_moments_and_stochastic_rounding_are_counted() -> None:
    common = {"gradient_checkpointing": True}
    plain, small, drawn = (
        run_config(adapter={"type": "full"}, train=common | extra)
        for extra in ({}, {"optim": "adamw_8bit"}, {"master_weights": "stochastic_rounding"})
    )
    model = plan_model(plain, SMALL)
    whole, eighth, none = (estimate_memory(config, model, "cuda") for config in (plain, small, drawn))
    assert whole.moments == 4 * eighth.moments == 8 * model.count.trainable
    assert whole.masters == 4 * model.count.trainable and none.masters == 0


def test_full_training_of_7b_on_24_gb_uses_the_hosts_memory() -> None:
    config = run_config(adapter={"type": "full"})
    plan = plan_for(config, QWEN_7B, 24)
    assert (plan.config.backend.name, plan.config.backend.offload) == ("fsdp2", "all")
    assert plan.config.train.optim == "adamw" and plan.config.train.gradient_checkpointing is True
    assert plan.memory.moments == plan.memory.masters == 0
    assert plan.memory.host == pytest.approx((4 + 8 + 4) * 7.6e9, rel=0.01)  # weights, moments and gradients in float32


def test_full_training_of_1_5b_on_24_gb_keeps_its_moments_in_8_bits() -> None:
    pytest.importorskip("bitsandbytes")
    config = run_config(adapter={"type": "full"}, data={"max_length": 4096})
    assert plan_for(config, QWEN_1_5B, 24).config.train.optim == "adamw_8bit"
    kept = run_config(adapter={"type": "full"}, data={"max_length": 4096}, train={"optim": "adamw"})
    assert plan_for(kept, QWEN_1_5B, 24).config.backend.offload == "all"


def test_8_bits_come_after_recomputing_all_layers_and_the_hosts_memory_last() -> None:
    config = run_config(adapter={"type": "full"})
    *recomputing, eighth, on_host = memory.choices(config)
    assert {(c.train.optim, c.backend.offload) for c in recomputing} == {("adamw", "none")}
    assert recomputing[-1].train.gradient_checkpointing is True
    assert (eighth.train.optim, eighth.backend) == ("adamw_8bit", recomputing[-1].backend)
    assert (on_host.train.optim, on_host.backend.name, on_host.backend.offload) == ("adamw", "fsdp2", "all")


@pytest.mark.parametrize(
    ("sections", "ranks", "offered"),
    [
        ({"train": {"optim": "adamw"}, "backend": {"offload": "none"}}, 1, []),
        ({"train": {"optim": "adamw_8bit"}}, 1, []),
        ({}, 2, ["adamw_8bit"]),
        ({"backend": {"name": "local"}}, 1, ["adamw_8bit"]),
        ({"backend": {"name": "fsdp2"}}, 8, ["all"]),
        ({"backend": {"name": "deepspeed_zero2"}}, 8, ["optimizer"]),
        ({"backend": {"name": "deepspeed_zero3"}}, 8, ["optimizer", "all"]),
        ({"train": {"master_weights": "stochastic_rounding"}}, 1, []),
        ({"balancer": {"name": "gradnorm"}}, 1, ["adamw_8bit"]),
        ({"train": {"torch_compile": True}}, 1, ["adamw_8bit"]),
        ({"model": {"quantization": "4bit"}}, 1, ["adamw_8bit"]),
        ({"model": {"quantization": "4bit"}, "backend": {"name": "fsdp2"}}, 2, []),
    ],
)
def test_auto_offers_what_the_config_leaves_open_and_the_backend_supports(
    sections: dict[str, Any], ranks: int, offered: list[str]
) -> None:
    config = run_config(**sections)
    plain = {memory.choices(config, ranks)[0].train.optim, "none"}
    found = [choice.train.optim for choice in memory.choices(config, ranks)]
    found += [choice.backend.offload for choice in memory.choices(config, ranks)]
    assert [one for one in found if one not in plain] == offered


def test_a_plan_for_which_this_machine_lacks_something_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(adapter={"type": "full"}, data={"max_length": 4096})
    model, capacity = plan_model(config, QWEN_1_5B), 24 * USABLE * GIB
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    plans = memory_plans(config, model, "cuda", host_memory=64 * GIB)
    *_, eighth, on_host = plans
    assert eighth.memory.total <= capacity and "bitsandbytes is not installed" in eighth.lack
    assert fastest_that_fits(plans, capacity) == plans.index(on_host)
    plans = memory_plans(config, model, "cuda", host_memory=8 * GIB)
    assert plans[-1].lack.endswith("of the host's memory, but only 8.00 GiB are free")
    assert fastest_that_fits(plans, capacity) is None


def test_a_resumed_run_uses_no_faster_plan_than_before() -> None:
    options = memory.choices(run_config())
    for index, option in enumerate(options):
        assert not_faster_than(options, option.model_dump(mode="json")) == options[index:]
    for older in ({}, run_config().model_dump(mode="json"), {"train": {"gradient_checkpointing": 0.1}}):
        assert not_faster_than(options, older) == options


def test_sharding_divides_weights_gradients_and_moments() -> None:
    config = run_config(adapter={"type": "full"}, backend={"name": "fsdp2"}, train={"gradient_checkpointing": False})
    model = plan_model(config, QWEN_7B)
    one, eight = (estimate_memory(config, model, "cuda", ranks) for ranks in (1, 8))
    assert eight.moments * 8 == pytest.approx(one.moments) and eight.masters == 0
    assert one.weights - eight.weights == pytest.approx(7 / 8 * 4 * model.count.total, rel=0.01)


def test_gradients_are_summed_once_a_step_if_all_of_them_fit() -> None:
    """7.6 billion weights over eight devices: 30 GB more on each. LoRA's hardly count."""
    sections: dict[str, Any] = {
        "backend": {"name": "fsdp2", "offload": "none"},
        "train": {"gradient_accumulation_steps": 4, "gradient_checkpointing": True},
    }
    full = run_config(adapter={"type": "full"}, **sections)
    model = plan_model(full, QWEN_7B)
    once, each = memory_plans(full, model, "cuda", ranks=8)
    assert [plan.config.train.sync_each_batch for plan in (once, each)] == [False, True]
    assert once.memory.gradients - each.memory.gradients == 4 * model.count.trainable
    assert each.memory.total < 80 * USABLE * GIB
    assert str(once) == "recompute all layers, sum gradients once a step"
    assert not_faster_than([once.config, each.config], each.config.model_dump(mode="json")) == [each.config]
    lora = run_config(**sections)
    once, each = memory_plans(lora, plan_model(lora, QWEN_7B), "cuda", ranks=8)
    assert 0 < once.memory.total - each.memory.total < 0.05 * each.memory.total


@pytest.mark.parametrize(
    ("backend", "train"),
    [
        ({"name": "fsdp2", "reduce_dtype": "bfloat16"}, {"gradient_accumulation_steps": 4}),  # would add up in bfloat16
        ({"name": "fsdp2"}, {"gradient_accumulation_steps": 1}),
        ({"name": "ddp"}, {"gradient_accumulation_steps": 4}),
        ({"name": "fsdp2"}, {"gradient_accumulation_steps": 4, "sync_each_batch": True}),
    ],
)
def test_some_configs_have_no_choice_of_when_to_sum_gradients(backend: dict[str, Any], train: dict[str, Any]) -> None:
    given = {"gradient_checkpointing": True, "optim": "adamw"}
    config = run_config(backend={"offload": "none", **backend}, train={**given, **train})
    assert memory.choices(config) == [config]


def test_deepspeed_is_not_offered_partial_recomputation() -> None:
    config = run_config(backend={"name": "deepspeed_zero3"})
    found = [
        choice.train.gradient_checkpointing for choice in memory.choices(config) if choice.backend.offload == "none"
    ]
    assert found == [False, True]


def test_a_model_whose_code_needs_numbers_is_estimated_by_a_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(data={"max_length": 512})
    counted = plan_model(config, SMALL).activations
    assert plan_model(config, SMALL).by_formula == ""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise NotImplementedError("on the meta device")

    monkeypatch.setattr(memory, "count_activations", refuse)
    planned = plan_model(config, SMALL)
    by_shape = planned.activations
    assert "formula" in planned.by_formula and planned.by_formula.endswith("NotImplementedError: on the meta device")
    for name in ("nothing_recomputed", "selective", "all_recomputed"):
        assert 0.5 < getattr(by_shape, name) / getattr(counted, name) < 2


@pytest.mark.parametrize("setting", [0, 1, 1.5, -0.25, "some", "true", None, []])
def test_an_unknown_setting_is_an_error_of_one_line(setting: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        run_config(train={"gradient_checkpointing": setting})
    (problem,) = caught.value.problems
    assert "train.gradient_checkpointing" in problem and "auto, selective, true, false" in problem
