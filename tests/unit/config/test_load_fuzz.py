"""Mutated and hostile configs: each is a valid config or a ConfigError with readable lines."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mftcoder.config.load import load_config, yaml_text
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError

NESTED: dict[str, Any] = {
    "model": {"model_name_or_path": "m", "dtype": "bfloat16"},
    "adapter": {"type": "lora", "lora_rank": 8, "lora_target": ["q_proj"]},
    "tasks": [{"name": "a", "path": "data/a", "weight": 2.0}, {"name": "b", "files": ["x.jsonl"]}],
    "data": {"max_length": 512, "packing": "best_fit", "role_markers": {"user": "U", "assistant": "A"}},
    "loss": {"normalization": "token"},
    "balancer": "uniform",
    "train": {"learning_rate": 1e-4, "max_steps": 10, "warmup_steps": 0.1, "report_to": []},
    "backend": {"name": "local"},
    "output_dir": "runs/a",
}
PUBLISHED: dict[str, Any] = {
    "data_paths": "[/data/a,/data/b]",
    "output_dir": "runs/a",
    "pretrained_model_path": "m",
    "peft_type": "lora",
    "task_weights": "[1.0,2.0]",
    "data_split": "98,2,0",
    "role_markers": {"user": "U", "assistant": "A"},
    "num_warmup_steps": 0.05,
    "seq_length": 512,
}
STRANGE: list[Any] = [None, True, -1, 0, 1e308, float("nan"), float("inf"), "", "x", "\u0000", [], {}, [[]], {"a": {}}]
STRANGE += [10**30, "[", "$X", [None], {"name": []}, {1: 2}, "a" * 10_000, "1e400", [[[[[[[[]]]]]]]], -0.0, "é\n"]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside `value`."""
    pairs = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [place for key, inner in pairs for place in [(value, key), *places(inner)]]


def strange(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(STRANGE))


def replace(config: Any, rng: random.Random) -> None:
    container, key = rng.choice(places(config))
    container[key] = strange(rng)


def remove(config: Any, rng: random.Random) -> None:
    container, key = rng.choice(places(config))
    del container[key]


def add(config: Any, rng: random.Random) -> None:
    container, _ = rng.choice(places(config))
    new = rng.choice(["weight", "model", "tasks", "", "a.b", "learning_rate", "\u0000"])
    if isinstance(container, dict):
        container[new] = strange(rng)
    else:
        container.append(strange(rng))


MUTATIONS: list[Callable[[Any, random.Random], None]] = [replace, replace, remove, add]


def mutated(number: int) -> bytes:
    """A config with one to three changed values, or with a few changed bytes of its text."""
    rng = random.Random(number)
    config = json.loads(json.dumps(rng.choice([NESTED, PUBLISHED])))
    for _ in range(rng.randint(1, 3)):
        if places(config):
            rng.choice(MUTATIONS)(config, rng)
    text = bytearray((json.dumps(config).encode() if number % 2 else as_yaml(config)) or b"\n")
    for _ in range(rng.choice([0, 0, 1, 4])):
        text[rng.randrange(len(text))] = rng.randrange(128)
    return bytes(text)


def as_yaml(config: Any) -> bytes:
    return yaml_text(config).encode() if config else b""


@pytest.mark.parametrize("block", range(10))
def test_a_mutated_config_is_valid_or_answered_in_lines(tmp_path: Path, block: int) -> None:
    for number in range(block * 50, block * 50 + 50):
        path = tmp_path / ("run.json" if number % 2 else "run.yaml")
        path.write_bytes(mutated(number))
        try:
            assert isinstance(load_config(path), RunConfig)
        except ConfigError as error:
            assert all(problem.strip() and "\n" not in problem for problem in error.problems), number
            assert all(len(problem) < 3000 for problem in error.problems), number


def test_the_unmutated_configs_are_valid(tmp_path: Path) -> None:
    for number, config in enumerate([NESTED, PUBLISHED]):
        path = tmp_path / f"{number}.yaml"
        path.write_bytes(as_yaml(config))
        assert load_config(path).output_dir == "runs/a"


TOO_LONG = ["a" * 256, "x/" + "é" * 128, "/" + "b/" * 3000, "~nobody-here/x", "a\u0000b"]
"""Texts that cannot be paths. Other texts, such as names, can be long."""
TOO_LARGE = [10**30, 2**63, -(2**63) - 1, 2**31, 1e308, float("inf"), float("nan"), 5e-324]
HALF = ["\ud800", "x\udfffy"]
PATHS = [
    "model.model_name_or_path",
    "model.tokenizer_name_or_path",
    "tasks.a.path",
    "tasks.b.files",
    "data.cache_dir",
    "output_dir",
]
PATHS += ["tasks.b.validation", "train.logging_dir", "train.resume_from_checkpoint"]


def lines_of(path: Path, *overrides: str) -> list[str]:
    """The problems of a config that must be refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert all("\n" not in problem and len(problem) < 1100 for problem in caught.value.problems)
    return list(caught.value.problems)


@pytest.mark.parametrize("base", [NESTED, PUBLISHED], ids=["nested", "published"])
def test_a_hostile_value_anywhere_is_valid_or_answered_in_lines(tmp_path: Path, base: dict[str, Any]) -> None:
    path = tmp_path / "run.json"
    for index in range(len(places(base))):
        for value in [*TOO_LONG, *TOO_LARGE, *HALF]:
            config = copy.deepcopy(base)
            container, key = places(config)[index]
            container[key] = value
            path.write_text(json.dumps(config))
            try:
                assert isinstance(load_config(path), RunConfig)
            except ConfigError as error:
                assert all("\n" not in problem and len(problem) < 1100 for problem in error.problems), (key, value)
            assert value not in HALF or lines_of(path), key


def test_a_key_that_is_half_a_character_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"model": "m", "tasks": {"\\ud800": "data"}, "output_dir": "o"}')
    (problem,) = lines_of(path)
    assert "tasks: '\\ud800' holds half of a character" in problem


@pytest.mark.parametrize("field", PATHS)
@pytest.mark.parametrize("value", TOO_LONG, ids=["part", "bytes", "whole", "home", "null"])
def test_a_path_that_no_file_can_have_names_its_field(tmp_path: Path, field: str, value: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(as_yaml(NESTED))
    (problem,) = lines_of(path, f"{field}={json.dumps(value)}")
    assert field in problem.replace("files.0", "files").replace("validation.0", "validation")


@pytest.mark.parametrize(
    "override", ["train.seed=9999999999999999999999", "adapter.lora_rank=2147483648", "data.max_length=16777217"]
)
@pytest.mark.parametrize("suffix", ["", "e999"])
def test_a_number_beyond_all_use_names_its_field(tmp_path: Path, override: str, suffix: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(as_yaml(NESTED))
    (problem,) = lines_of(path, override + suffix)
    assert override.partition("=")[0] in problem


@pytest.mark.parametrize("number", ["1e308", "1e400", ".inf", ".nan", "5e-324"])
@pytest.mark.parametrize(
    "field", ["train.learning_rate", "train.num_train_epochs", "tasks.a.weight", "adapter.lora_alpha"]
)
def test_a_float_beyond_its_range_names_its_field(tmp_path: Path, field: str, number: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(as_yaml(NESTED))
    (problem,) = lines_of(path, f"{field}={number}")
    assert field in problem


@pytest.mark.parametrize("override", ["output_dir=x\udcff", 'output_dir="\\ud800"', "x\udcff=1"])
def test_half_a_character_in_an_override_is_refused(tmp_path: Path, override: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(as_yaml(NESTED))
    (problem,) = lines_of(path, override)
    assert "holds half of a character" in problem
    assert problem.encode()
