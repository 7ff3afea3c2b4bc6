"""Configs of the published preference and pretraining programs become the same runs here."""

from typing import Any

import pytest

from mftcoder.config.compat.mftcoder_json import convert, is_published_key
from mftcoder.config.kinds import DpoKind, OrpoKind, PretrainKind
from mftcoder.config.load import parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError

# Names and values as the published dpo_train_config.json has them, paths filled in.
DPO = {
    "xxpo": "dpo", "data_paths": "[data/pairs.jsonl]", "output_dir": "runs/dpo", "pretrained_model_path": "base",
    "tb_dir": "runs/tb", "model_type": "qwen2", "peft_type": "lora", "lora_rank": 64, "lora_alpha": 128,
    "lora_dropout": 0.0, "beta": 0.1, "rpo_alpha": 0.5, "max_prompt_length": 2048, "max_length": 4096,
    "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "learning_rate": 5e-7, "weight_decay": 0.01,
    "lr_scheduler_type": "cosine", "warmup_steps": 100, "num_train_epochs": 2, "data_split": "99,1", "logging_steps": 10,
    "save_steps": 200, "eval_steps": 50, "max_steps": -1, "seed": 42, "attn_implementation": "flash_attention_2",
    "dataset_num_proc": 4, "dtype": "bfloat16", "optimizer_type": "adamw_torch", "save_only_model": True,
}  # fmt: skip
MPT = {
    "data_paths": "[data/code]", "output_dir": "runs/mpt", "pretrained_model_path": "base", "save_transformers_model": True,
    "seq_length": 4096, "padding_mode": "concat", "learning_rate": 1e-5, "data_split": "95,5",
}  # fmt: skip


def converted(raw: dict[str, Any]) -> tuple[RunConfig, str]:
    found = convert(raw, origin="c.json")
    return parse_config(found.nested, origin="c.json"), "\n".join(found.warnings)


def test_the_published_dpo_config_is_the_same_run() -> None:
    config, warnings = converted(DPO)
    (task,) = config.tasks
    assert (task.name, task.path) == ("pairs", "data/pairs.jsonl")
    assert task.kind == DpoKind(name="dpo", beta=0.1, rpo_alpha=0.5)
    assert (config.data.max_length, config.data.packing, config.data.num_proc) == (8192, "none", 4)
    assert config.data.val_size == pytest.approx(0.01)
    assert config.loss.normalization == "sample"
    train = config.train
    assert (train.learning_rate, train.min_lr, train.warmup_steps, train.max_steps) == (5e-7, 0.0, 100, None)
    assert (train.logging_steps, train.save_steps, train.eval_steps, train.optim) == (10, 200, 50, "adamw")
    assert (train.per_device_train_batch_size, train.gradient_accumulation_steps) == (1, 8)
    assert (config.adapter.lora_rank, config.adapter.lora_alpha, config.model.dtype) == (64, 128, "bfloat16")
    assert "max_prompt_length, save_only_model" in warnings and "data.max_length: 8192" in warnings


def test_orpo_keys_of_fine_tuning_and_8_bits() -> None:
    config, warnings = converted(
        {**DPO, "xxpo": "orpo", "log_interval": 5, "optimizer_type": "adamw_bnb_8bit", "max_steps": 7}
    )
    assert config.tasks[0].kind == OrpoKind(name="orpo", beta=0.1)
    assert (config.train.logging_steps, config.train.optim, config.train.max_steps) == (10, "adamw_8bit", 7)
    assert (
        "log_interval: has no effect with xxpo; logging_steps has" in warnings
        and "rpo_alpha: has no effect" in warnings
    )


def test_the_pretraining_config_trains_all_weights_on_documents_that_run_on() -> None:
    config, warnings = converted(MPT)
    assert config.tasks[0].kind == PretrainKind(name="pretrain") and config.adapter.type == "full"
    assert config.model.quantization is None and config.data.max_length == 4096
    assert "chat_template" not in warnings and "save_transformers_model: has no effect" in warnings


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"xxpo": "ppo"}, "xxpo"),
        ({"betta": 0.1}, r"betta: unknown key\. Did you mean 'beta'"),
        ({"optimizer_type": "lion"}, "optimizer_type"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"dtype": "float16"}, "dtype"),
    ],
)
def test_what_cannot_be_converted_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        convert({**DPO, **change}, origin="c.json")
    with pytest.raises(ConfigError, match="peft_type"):
        convert({**MPT, "peft_type": "lora"}, origin="c.json")


def test_overrides_may_use_the_programs_keys() -> None:
    assert is_published_key("rpo_alpha") and is_published_key("save_transformers_model")
