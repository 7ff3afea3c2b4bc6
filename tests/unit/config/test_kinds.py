"""A task's kind is read with its own options, and an option of another kind is refused with a suggestion."""

from pathlib import Path
from typing import Any

import pytest

from mftcoder.config.kinds import PretrainKind, SftKind
from mftcoder.config.load import apply_override, load_config, parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError


def config(kind: Any, *overrides: str) -> RunConfig:
    raw = {"model": "m", "tasks": {"a": {"path": "x", "kind": kind}}, "output_dir": "o"}
    for override in overrides:
        apply_override(raw, override)
    return parse_config(raw, origin="test")


def test_a_text_is_a_kind_with_its_defaults() -> None:
    assert config("pretrain").tasks[0].kind == PretrainKind(name="pretrain")
    assert config("sft").tasks[0].kind == SftKind()
    assert parse_config({"model": "m", "tasks": {"a": "x"}, "output_dir": "o"}, origin="t").tasks[0].kind == SftKind()


def test_a_resolved_config_reads_back(tmp_path: Path) -> None:
    made = config({"name": "pretrain", "suffixes": ".py", "fim_rate": 0.5})
    assert parse_config(made.model_dump(mode="json"), origin="again") == made


def test_options_can_be_set_on_the_command_line() -> None:
    assert config("pretrain", "tasks.a.kind.fim_rate=0.25").tasks[0].kind == PretrainKind(
        name="pretrain", fim_rate=0.25
    )


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("pretrian", r"tasks\.a\.kind: unknown kind 'pretrian'\. Did you mean 'pretrain'\?"),
        ({"name": ["sft"]}, r"tasks\.a\.kind: unknown kind"),
        ({"name": "sft", "fim_rate": 0.5}, r"tasks\.a\.kind\.fim_rate: unknown key"),
        ({"name": "pretrain", "fim_raet": 0.5}, r"tasks\.a\.kind\.fim_raet: unknown key\. Did you mean 'fim_rate'"),
        ({"name": "pretrain", "fim_rate": 1.5}, r"tasks\.a\.kind\.fim_rate: Input should be less than or equal to 1"),
        ({"name": "pretrain", "suffixes": ["a/b"]}, r"'a/b' is not the end of a file name"),
        ({"name": "pretrain", "suffixes": "*.py"}, r"'\*\.py' is not the end of a file name"),
        ({"name": "pretrain", "suffixes": ".py,.md"}, r"'\.py,\.md' is not the end of a file name"),
        ({"name": "pretrain", "suffixes": " .py"}, r"' \.py' is not the end of a file name"),
        ({"name": "DPO"}, r"unknown kind 'DPO'\. Did you mean 'dpo'\?"),
        ({"name": "dpo", "beta": True}, r"tasks\.a\.kind\.beta: true is a switch\. Give a number"),
        ({"name": "simpo", "label_smoothing": False}, r"kind\.label_smoothing: false is a switch"),
        ({"name": "pretrain", "fim_rate": True}, r"kind\.fim_rate: true is a switch"),
        ({"name": "grpo", "epsilon_high": True}, r"kind\.epsilon_high: true is a switch"),
        ({"name": "pretrain", "suffixes": [".jsonl"]}, "such files are always read, as records"),
        ({"name": "kto", "desirable_weight": 0, "undesirable_weight": 0}, "are both 0, so nothing would be trained"),
        (3, r"tasks\.a\.kind: should be a section of fields, not 3"),
    ],
)
def test_a_wrong_kind_is_one_line(kind: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as error:
        config(kind)
    assert len(error.value.problems) == 1


def test_a_format_of_conversations_is_refused_for_pairs() -> None:
    raw = {"model": "m", "tasks": {"a": {"path": "x", "kind": "kto", "format": "alpaca"}}, "output_dir": "o"}
    with pytest.raises(ConfigError, match="format: alpaca: records of kind kto are read by their fields"):
        parse_config(raw, origin="test")


@pytest.mark.parametrize("loss", [{"normalization": "token"}, {"focal": "sample"}, {"focal": "task"}])
def test_an_objective_without_meaning_for_pairs_is_refused(loss: dict[str, str]) -> None:
    raw = {"model": "m", "tasks": {"a": "x", "b": {"path": "y", "kind": "dpo"}}, "output_dir": "o", "loss": loss}
    with pytest.raises(ConfigError, match=r"loss\.\w+: \w+ has no meaning for task 'b', whose samples are pairs"):
        parse_config(raw, origin="test")
    raw["tasks"] = {"a": "x"}
    parse_config(raw, origin="test")


@pytest.mark.parametrize(("recipe", "expected"), [("pretrain", ["pretrain", "pretrain"]), ("grpo", ["grpo", "sft"])])
def test_the_recipes_of_the_repository_are_valid(recipe: str, expected: list[str]) -> None:
    config = load_config(Path(__file__).parents[3] / "recipes" / f"{recipe}.yaml")
    assert [task.kind.name for task in config.tasks] == expected
