"""The published flat JSON: each documented key is converted, or refused with a reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from mftcoder.config.compat.mftcoder_json import convert, is_published
from mftcoder.config.load import load_config, parse_config, read_config
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError

CONTEST: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "golden" / "published" / "contest_qwen_1_8b.json").read_text()
)
"""The contest's qwen_train_config_1_8B.json (codefuse-ai/MFTCoder, branch codeqwen_competition, mft_peft_hf)."""
# Names and values as configs/*_train_config.json of the published project has them, paths filled in.
EXAMPLE: dict[str, Any] = json.loads(
    (Path(__file__).parents[3] / "golden" / "published" / "lora_example.json").read_text()
)


def run_of(**changes: Any) -> RunConfig:
    return parse_config(convert({**EXAMPLE, **changes}, origin="x.json").nested, origin="x.json")


def problems_of(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        run_of(**changes)
    return str(caught.value)


def test_the_published_example_is_the_same_run_in_our_words() -> None:
    run = run_of()
    assert run.model.model_name_or_path == "/models/Qwen-1_8B"
    assert [(task.name, task.path, task.weight) for task in run.tasks] == [
        ("code_completion", "/data/code_completion", 1.0),
        ("unit_tests", "/data/unit_tests", 1.0),
    ]
    assert (run.adapter.type, run.adapter.lora_rank, run.adapter.lora_alpha) == ("lora", 96, 32)
    assert (run.adapter.lora_dropout, run.adapter.lora_target) == (0.05, ("all-linear",))
    assert (run.data.chat_template, run.data.train_on, run.data.max_length) == ("chatml", "assistant", 4096)
    assert (run.data.packing, run.data.padding, run.data.over_length) == ("none", "dynamic", "drop")
    assert run.data.val_size == pytest.approx(0.02)
    assert run.loss.normalization == "task_token"
    assert (run.train.per_device_train_batch_size, run.train.per_device_eval_batch_size) == (2, 4)
    assert (run.train.gradient_accumulation_steps, run.train.num_train_epochs, run.train.max_steps) == (3, 4, None)
    assert (run.train.learning_rate, run.train.min_lr, run.train.weight_decay) == (5e-5, 5e-6, 0.1)
    assert (run.train.lr_scheduler_type, run.train.warmup_steps, run.train.seed) == ("cosine", 300, 1234)
    assert (run.train.logging_steps, run.train.save_steps, run.train.eval_steps) == (10, 100, 50)
    assert (run.train.save_strategy, run.train.save_total_limit) == ("steps_and_epoch", None)
    assert (run.train.early_stopping_patience, run.train.resume_from_checkpoint) == (5, True)
    assert (run.output_dir, run.train.logging_dir) == ("/runs/lora", "/runs/tensorboard")


def test_the_contests_example_is_the_same_run_in_our_words() -> None:
    run = parse_config(convert(CONTEST, origin="x").nested, origin="x")
    assert (run.data.chat_template, run.data.max_length, run.data.val_size) == ("chatml", 4096, pytest.approx(0.05))
    assert (run.adapter.type, run.adapter.lora_rank, run.model.quantization) == ("lora", 96, None)
    assert (run.train.eval_steps, run.train.save_steps, run.train.early_stopping_patience) == (1000, 1000, 2)
    assert (run.train.learning_rate, run.train.min_lr, run.train.warmup_steps) == (5e-5, 1e-6, 300)
    assert (run.train.num_train_epochs, run.train.per_device_train_batch_size) == (10, 8)


OLDER = {"preprocessing_num_workers": 2, "num_workers": 2, "checkpoint_activations": True}
SIBLINGS: dict[str, dict[str, Any]] = {  # what the other example files of that branch hold otherwise
    "qwen": OLDER | {"lora_rank": 32, "learning_rate": 1e-4, "min_lr": 1e-5, "seq_length": 2048, "world_size": 128},
    "gpt_neox": OLDER | {"model_type": "gpt_neox", "num_warmup_steps": 30, "seed": 42, "num_train_epochs": 8},
    "starcoder": {"model_type": "starcoder", "quantization": None, "padding_mode": "pack"},
    "chatglm2": {"model_type": "chatglm2", "quantization": None, "padding_mode": "pack"},
    "llama": {"model_type": "llama", "peft_type": "qlora", "quantization": "4bit", "padding_mode": "pack"},
}


@pytest.mark.parametrize("name", SIBLINGS)
def test_every_example_of_the_contests_branch_is_accepted(name: str) -> None:
    run = parse_config(convert(CONTEST | SIBLINGS[name], origin="x").nested, origin="x")
    assert run.train.gradient_checkpointing
    assert run.train.eval_steps == 1000
    assert (run.data.num_proc, run.train.dataloader_num_workers) == (
        (2, 2) if name in ("qwen", "gpt_neox") else (None, 0)
    )


def test_a_key_that_stands_there_in_two_spellings_is_an_error() -> None:
    with pytest.raises(ConfigError, match="evalation_steps: is the same key as evaluation_steps"):
        convert(CONTEST | {"evaluation_steps": 5}, origin="x")


def test_an_override_may_use_the_older_spelling(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONTEST))
    assert load_config(path, ["evalation_steps=7"]).train.eval_steps == 7


def test_16bit_is_no_quantization_and_of_qlora_4_bits_with_a_warning() -> None:
    assert not any("quantization" in warning for warning in convert(CONTEST, origin="x").warnings)
    qlora = convert(CONTEST | {"peft_type": "qlora"}, origin="x")
    assert qlora.nested["model"]["quantization"] == "4bit"
    assert any(warning.startswith("quantization: 4bit is used") for warning in qlora.warnings)


def test_the_template_is_that_of_the_published_code_and_a_line_says_so(tmp_path: Path) -> None:
    def chosen(**changes: Any) -> tuple[str, str]:
        converted = convert(CONTEST | changes, origin="x")
        (line,) = (warning for warning in converted.warnings if warning.startswith("data.chat_template: "))
        return converted.nested["data"]["chat_template"], line

    (tmp_path / "chatml").mkdir()
    (tmp_path / "chatml" / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "x": "<|im_start|>"}')
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "tokenizer_config.json").write_text("{}")
    row, line = chosen(model_type="Qwen2")
    assert (row, "chatml, for model_type is Qwen2" in line) == ("chatml", True)
    row, line = chosen(model_type="llama", pretrained_model_path=str(tmp_path / "chatml"))
    assert (row, f"the tokenizer of {tmp_path / 'chatml'} has <|im_start|>" in line) == ("chatml", True)
    for folder in (tmp_path / "plain", tmp_path / "nowhere", "codellama/CodeLlama-7b-hf", "a" * 5000):
        row, line = chosen(model_type="llama", pretrained_model_path=str(folder))
        assert (row, "versions 0.3 to 0.5" in line) == ("mftcoder-v0.3", True)


def test_markers_are_written_with_the_published_line_breaks_and_replace_the_template() -> None:
    converted = convert(CONTEST | {"role_markers": {"user": "Q: ", "assistant": "A: "}}, origin="x")
    assert converted.nested["data"]["role_markers"]["after_content"] == "\n"
    assert not any("chat_template" in warning for warning in converted.warnings)


def test_a_template_that_an_override_chooses_needs_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONTEST))
    assert load_config(path, ["data.chat_template=mftcoder"]).data.chat_template == "mftcoder"
    assert "chat_template" not in capsys.readouterr().err


def test_a_key_left_out_has_its_published_default() -> None:
    sparse = {key: EXAMPLE[key] for key in ("data_paths", "output_dir", "pretrained_model_path", "peft_type")}
    run = parse_config(convert(sparse, origin="x").nested, origin="x")
    assert (run.train.learning_rate, run.train.min_lr, run.train.weight_decay) == (5e-5, 5e-6, 0.01)
    assert (run.train.per_device_train_batch_size, run.train.seed, run.train.warmup_steps) == (8, 1234, 0.05)
    assert (run.data.max_length, run.train.num_train_epochs, run.adapter.lora_rank) == (4096, 4, 96)


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"peft_type": None}, "adapter.type", "full"),
        ({"target_modules": ["q_proj", "v_proj"]}, "adapter.lora_target", ("q_proj", "v_proj")),
        ({"target_modules": "[q_proj, v_proj]"}, "adapter.lora_target", ("q_proj", "v_proj")),
        ({"attn_implementation": "flash_attention_2"}, "model.attn_implementation", "auto"),
        ({"attn_implementation": "eager"}, "model.attn_implementation", "eager"),
        ({"trust_remote_code": True}, "model.trust_remote_code", True),
        ({"weighted_loss_mode": "case1"}, "loss.normalization", "token"),
        ({"weighted_loss_mode": "case2"}, "loss.normalization", "sample"),
        ({"weighted_loss_mode": "case4"}, "loss.normalization", "task_sample"),
        ({"weighted_loss_mode": "coba"}, "balancer.name", "coba"),
        ({"weighted_loss_mode": "coba"}, "balancer.window", 200),
        ({"weighted_loss_mode": "coba", "coba_tau": 3}, "balancer.tau", 3),
        ({"weighted_loss_mode": "coba", "coba_warmup_steps": 50}, "balancer.warmup_steps", 50),
        ({"weighted_loss_mode": "coba", "coba_update_interval": 5}, "balancer.update_interval", 5),
        ({"weighted_loss_mode": "coba", "coba_sample_valid_num": 2}, "balancer.val_batches", 2),
        ({"weighted_loss_mode": "self-paced"}, "loss.normalization", "task_token"),
        ({"weighted_loss_mode": "selfpaced"}, "balancer.name", "selfpaced"),
        ({"weighted_loss_mode": "selfpaced"}, "balancer.window", 100),
        ({"weighted_loss_mode": "selfpaced", "selfpaced_interval": 3}, "balancer.window", 300),
        ({"weighted_loss_mode": "selfpaced", "selfpaced_interval": 3}, "balancer.warmup_steps", 100),
        ({"weighted_loss_mode": "selfpaced", "selfpaced_interval": 3}, "balancer.update_interval", 3),
        ({"weighted_loss_mode": "selfpaced", "selfpaced_sample_valid_num": 2}, "balancer.val_batches", 2),
        ({"weighted_loss_mode": "selfpaced", "selfpaced_scale_factor": 20}, "balancer.gain", 20),
        ({"data_split": "90,5,5"}, "data.val_size", 0.1),
        ({"data_split": "95,5"}, "data.val_size", 0.05),
        ({"data_split": "100,0,0"}, "train.eval_strategy", "no"),
        ({"data_split": "100,0,0"}, "train.early_stopping_patience", None),
        ({"padding_mode": "pack"}, "data.packing", "best_fit"),
        ({"padding_mode": "concat"}, "data.over_length", "split"),
        ({"use_dynamic_padding": False}, "data.padding", "max_length"),
        ({"tokenize_mode": "sst"}, "data.train_on", "all"),
        ({"max_train_steps": 30}, "train.max_steps", 30),
        ({"num_warmup_steps": 0.05}, "train.warmup_steps", 0.05),
        ({"lr_scheduler_type": "constant"}, "train.warmup_steps", 0),
        ({"lr_scheduler_type": "constant_with_warmup"}, "train.warmup_steps", 300),
        ({"early_stopping": False}, "train.early_stopping_patience", None),
        ({"saving_limit": 2}, "train.save_total_limit", 2),
        ({"epoch_checkpointing": False}, "train.save_strategy", "steps"),
        ({"checkpointing_steps": None}, "train.save_strategy", "epoch"),
        ({"checkpointing_steps": 0, "epoch_checkpointing": False}, "train.save_strategy", "no"),
        ({"auto_resume": False}, "train.resume_from_checkpoint", False),
        ({"resume_from_checkpoint": "/runs/old/step_10"}, "train.resume_from_checkpoint", "/runs/old/step_10"),
        ({"task_weights": "[1.0, 3]"}, "tasks.1.weight", 3.0),
        ({"task_weights": [0.5, 2]}, "tasks.0.weight", 0.5),
        ({"data_paths": ["/a/tests/", "/b/repair"]}, "tasks.0.name", "tests"),
        ({"data_paths": "['/a/tests', \"/b/repair\"]"}, "tasks.1.path", "/b/repair"),
        ({"data_paths": ["/a/tests", "/b/tests"]}, "tasks.1.name", "b-tests"),
        ({"data_paths": "[/a/part.jsonl,/b]"}, "tasks.0.name", "part"),
        ({"role_markers": {"user": "Q: ", "assistant": "A: "}}, "data.role_markers.assistant", "A: "),
    ],
)
def test_each_key_keeps_its_meaning(changes: dict[str, Any], field: str, expected: object) -> None:
    value: Any = run_of(**changes)
    for part in field.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    assert value == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_what_this_version_cannot_do_is_refused_all_at_once() -> None:
    text = problems_of(
        data_paths="$DATA_PATHS",
        load_raw_dataset=False,
    )
    keys = {line.split(": ")[1] for line in text.splitlines()}
    assert keys == {"data_paths", "load_raw_dataset"}
    assert all(line.startswith("x.json: ") for line in text.splitlines())


def test_peft_type_left_out_is_the_published_default_a_4_bit_base() -> None:
    raw = {key: value for key, value in EXAMPLE.items() if key not in ("peft_type", "quantization")}
    nested = convert(raw, origin="x.json").nested
    assert (nested["model"]["quantization"], nested["adapter"]["type"]) == ("4bit", "lora")


def test_quantization_without_qlora_has_no_effect_and_a_warning() -> None:
    converted = convert({**EXAMPLE, "peft_type": "lora", "quantization": "4bit"}, origin="x.json")
    assert "quantization" not in converted.nested["model"]
    assert any("no effect without peft_type: qlora" in warning for warning in converted.warnings)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"weigted_loss_mode": "case3"}, "weigted_loss_mode: unknown key. Did you mean 'weighted_loss_mode'?"),
        ({"weighted_loss_mode": "case5"}, "weighted_loss_mode: Input should be 'case1', 'case2'"),
        ({"task_weights": "[1,2,3]"}, "task_weights: 3 weights for 2 data_paths"),
        ({"data_split": "0,100,0"}, "data_split: the first part, training, must be above 0"),
        ({"data_split": "98"}, "data_split: List should have at least 2 items"),
        ({"num_warmup_steps": 1.5}, "num_warmup_steps: 1.5 is neither a whole number of steps nor a fraction"),
        ({"role_markers": {"system": "S"}}, "role_markers: has no marker for user and assistant"),
        ({"seq_length": "long"}, "seq_length: Input should be a valid integer"),
        ({"data_paths": "[]"}, "data_paths: List should have at least 1 item"),
        ({"data_paths": "$DATA_PATHS"}, "data_paths: '$DATA_PATHS' is a placeholder"),
    ],
)
def test_a_wrong_key_or_value_is_named(changes: dict[str, Any], expected: str) -> None:
    assert f"x.json: {expected}" in problems_of(**changes)


def test_keys_without_meaning_are_named_in_one_warning() -> None:
    converted = convert({**EXAMPLE, "use_xformers": True, "coba_tau": 5}, origin="x.json")
    assert converted.warnings[0].endswith("tokenizer_type, shuffle_before_split, use_xformers, coba_tau")


def test_a_methods_own_keys_are_no_idle_ones_under_it() -> None:
    both = {**EXAMPLE, "coba_tau": 5, "selfpaced_interval": 1}
    warnings = convert({**both, "weighted_loss_mode": "coba"}, origin="x").warnings
    assert "coba_tau" not in "".join(warnings) and "selfpaced_interval" in "".join(warnings)
    assert any("balancer.variant=released" in warning for warning in warnings)
    warnings = convert({**both, "weighted_loss_mode": "selfpaced"}, origin="x").warnings
    assert "coba_tau" in "".join(warnings) and "selfpaced_interval" not in "".join(warnings)


@pytest.mark.parametrize("mode", ["case1", "case2"])
def test_task_weights_are_left_out_with_a_warning_where_the_published_trainer_ignores_them(mode: str) -> None:
    converted = convert({**EXAMPLE, "task_weights": "[1, 3]", "weighted_loss_mode": mode}, origin="x")
    assert [task["weight"] for task in converted.nested["tasks"]] == [1.0, 1.0]
    assert any(f"task_weights: have no effect with weighted_loss_mode {mode}" in line for line in converted.warnings)


def test_a_third_split_and_concat_are_explained() -> None:
    warnings = "\n".join(convert({**EXAMPLE, "data_split": "90,5,5", "padding_mode": "concat"}, origin="x").warnings)
    assert "data_split: the third part" in warnings
    assert "padding_mode: concat" in warnings


def test_a_nested_config_is_not_taken_for_a_published_one() -> None:
    assert is_published(EXAMPLE)
    assert not is_published({"model": "m", "tasks": {"a": "b"}, "output_dir": "o"})
    assert not is_published({"model": "m", "pretrained_model_path": "p"})


def test_overrides_by_published_keys_and_by_fields_both_work(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(EXAMPLE))
    run = load_config(path, ["seq_length=512", "train.learning_rate=1e-3", "data_paths=[/a, /b, /c]"])
    assert (run.data.max_length, run.train.learning_rate, run.task_names) == (512, 1e-3, ("a", "b", "c"))
    assert read_config(path).nested["data"]["max_length"] == 4096


def test_loading_logs_each_warning_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(EXAMPLE))
    load_config(path)
    lines = [record.message for record in caplog.records if record.name == "mftcoder"]
    assert len(lines) == len(set(lines)) == 2
    assert lines[0].startswith(
        f"warning: {path}: these keys of the published config have no effect here: tokenizer_type"
    )
    assert lines[1].startswith(f"warning: {path}: data.chat_template: chatml, for model_type is qwen")
