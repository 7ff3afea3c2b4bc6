"""The balancer section: every misfit is one line, before anything is loaded."""

from typing import Any

import pytest

from mftcoder.config.balancer import OPTIONS, BalancerConfig
from mftcoder.config.load import parse_config
from mftcoder.errors import ConfigError
from mftcoder.registry import BALANCERS


def parse(balancer: Any) -> BalancerConfig:
    raw = {"model": "some/model", "tasks": {"tests": "data/tests"}, "output_dir": "runs/x", "balancer": balancer}
    return parse_config(raw, origin="a.yaml").balancer


def problem(balancer: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        parse(balancer)
    assert len(raised.value.problems) == 1
    return raised.value.problems[0]


def test_every_method_has_its_options_listed() -> None:
    assert set(OPTIONS) == set(BALANCERS.names())
    assert {name for options in OPTIONS.values() for name in options} == set(BalancerConfig.model_fields) - {"name"}


def test_a_name_is_enough() -> None:
    assert parse("coba") == BalancerConfig(name="coba")


def test_published_coba_names_are_accepted() -> None:
    published = {
        "coba_warmup_steps": 20,
        "coba_history_length": 60,
        "coba_tau": 4,
        "coba_update_interval": 2,
        "coba_sample_valid_num": 3,
    }
    ours = BalancerConfig(name="coba", warmup_steps=20, window=60, tau=4, update_interval=2, val_batches=3)
    assert parse({"name": "coba", **published}) == ours


@pytest.mark.parametrize(
    ("balancer", "message"),
    [
        ("cobra", "a.yaml: balancer.name: unknown balancer 'cobra'. Did you mean 'coba'?"),
        (
            {"name": "coba", "window": 10, "warmup_steps": 20},
            "a.yaml: balancer: window (10) is shorter than warmup_steps (20); make it at least as long",
        ),
        (
            {"name": "coba", "window": 10, "update_interval": 8},
            "a.yaml: balancer: window (10) holds fewer than two updates; make it at least 16",
        ),
        (
            {"name": "coba", "update_interval": 0},
            "a.yaml: balancer.update_interval: Input should be greater than 0, not 0",
        ),
        (
            {"name": "famo", "tau": 5},
            "a.yaml: balancer: 'famo' has no option tau. "
            "It takes signal, val_batches, update_interval, learning_rate, weight_decay, variant.",
        ),
        ({"tau": 5}, "a.yaml: balancer: 'uniform' has no option tau. It takes none."),
        ({"name": "famo", "val_batches": 2}, "a.yaml: balancer: val_batches is for signal: validation"),
        ({"name": "coba", "tau": float("nan")}, "a.yaml: balancer.tau: Input should be a finite number, not nan"),
    ],
)
def test_a_misfit_is_one_line(balancer: Any, message: str) -> None:
    assert problem(balancer) == message
