"""The balancer section: options come from the method's own file, and each mistake is one line, before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest

from mftcoder.balancing.methods.coba import CobaOptions
from mftcoder.balancing.methods.pace import PaceOptions
from mftcoder.config.balancer import BalancerConfig, methods_with, option_names
from mftcoder.config.load import dump_yaml, load_config, parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.errors import ConfigError
from mftcoder.registry import BALANCERS

RUN = {"model": "some/model", "tasks": {"tests": "data/tests"}, "output_dir": "runs/x"}
COBA = "val_batches, update_interval, warmup_steps, window, tau, variant"
FAMO = "signal, val_batches, update_interval, learning_rate, weight_decay, variant"

WITH_TAU = ", ".join(methods_with("tau"))


def run(balancer: Any, **sections: Any) -> RunConfig:
    return parse_config({**RUN, "balancer": balancer, **sections}, origin="a.yaml")


def parse(balancer: Any) -> BalancerConfig:
    return run(balancer).balancer


def problems(balancer: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        parse(balancer)
    return list(raised.value.problems)


def test_a_name_is_enough() -> None:
    assert parse("coba") == parse({"name": "coba"}) == CobaOptions()
    assert parse("uniform") == parse({}) == parse_config(RUN, origin="a.yaml").balancer == BalancerConfig()


def test_an_option_left_out_has_the_default_of_its_method() -> None:
    coba, pace = parse({"name": "coba", "window": 40}), parse("pace")
    assert isinstance(coba, CobaOptions) and isinstance(pace, PaceOptions)
    assert (coba.window, coba.tau, coba.variant, pace.gain, pace.floor) == (40, 5.0, "paper", 4.0, 0.2)


def test_published_coba_names_are_accepted() -> None:
    published = {
        "coba_warmup_steps": 20,
        "coba_history_length": 60,
        "coba_tau": 4,
        "coba_update_interval": 2,
        "coba_sample_valid_num": 3,
    }
    ours = CobaOptions(warmup_steps=20, window=60, tau=4, update_interval=2, val_batches=3)
    assert parse({"name": "coba", **published}) == ours


@pytest.mark.parametrize(
    ("balancer", "message"),
    [
        ("cobra", "a.yaml: balancer.name: unknown balancer 'cobra'. Did you mean 'coba'?"),
        ({"name": "cobra", "tau": -1}, "a.yaml: balancer.name: unknown balancer 'cobra'. Did you mean 'coba'?"),
        ({"name": None}, "a.yaml: balancer.name: Input should be a valid string, not None"),
        ([1], "a.yaml: balancer: should be a section of fields, not [1]"),
        (
            {"name": "coba", "window": 10, "warmup_steps": 20},
            "a.yaml: balancer: window (10) is shorter than warmup_steps (20); make it at least as long",
        ),
        (
            {"name": "pace", "window": 10, "warmup_steps": 20},
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
            {"name": "coba", "tau": 4, "coba_tau": 5},
            "a.yaml: balancer: coba_tau and tau are two names of one option. Give one of them",
        ),
        ({"name": "coba", "wndow": 9}, "a.yaml: balancer.wndow: unknown key. Did you mean 'window'?"),
        (
            {"name": "coba", "zzz": 9},
            f"a.yaml: balancer.zzz: unknown key. Known: {', '.join(sorted(COBA.split(', ')))}.",
        ),
        ({"zzz": 9}, "a.yaml: balancer.zzz: unknown key. Uniform takes none."),
        (
            {"name": "famo", "tau": 5},
            f"a.yaml: balancer.tau: unknown key. It is an option of {WITH_TAU}; famo takes {FAMO}.",
        ),
        ({"tau": 5}, f"a.yaml: balancer.tau: unknown key. It is an option of {WITH_TAU}; uniform takes none."),
        (
            {"gain": 5},
            f"a.yaml: balancer.gain: unknown key. It is an option of {', '.join(methods_with('gain'))}; uniform takes none.",
        ),
        ({"name": "famo", "val_batches": 2}, "a.yaml: balancer: val_batches is for signal: validation"),
        ({"name": "coba", "tau": float("nan")}, "a.yaml: balancer.tau: Input should be a finite number, not nan"),
    ],
)
def test_a_misfit_is_one_line(balancer: Any, message: str) -> None:
    assert problems(balancer) == [message]


def test_all_problems_of_a_section_come_together() -> None:
    assert problems({"name": "coba", "tau": -1, "wndow": 9}) == [
        "a.yaml: balancer.tau: Input should be greater than 0, not -1",
        "a.yaml: balancer.wndow: unknown key. Did you mean 'window'?",
    ]


def test_released_coba_needs_the_validation_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match=r"balancer.variant: released divides by .* but train.eval_strategy is no"):
        run({"name": "coba", "variant": "released"}, train={"eval_strategy": "no"})
    assert run("coba", train={"eval_strategy": "no"})


@pytest.mark.parametrize("name", BALANCERS.names())
def test_the_resolved_config_holds_every_option_and_reads_back_to_the_same_run(name: str, tmp_path: Path) -> None:
    config = run(name)
    assert set(config.model_dump()["balancer"]) == {"name", *option_names(name)}
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", BALANCERS.names())
def test_a_config_that_holds_null_for_the_options_of_all_methods_reads_as_without_them(name: str) -> None:
    """Older run folders and checkpoints hold such a section."""
    nulls = {option: None for method in BALANCERS.table for option in option_names(method)}
    assert len(nulls) > 15
    assert parse({**nulls, "name": name}) == parse(name)
    assert problems({**nulls, "name": name, "made_up": None})


def test_methods_with_names_the_methods_that_have_an_option() -> None:
    assert {"dwa", "random"} <= set(methods_with("temperature")) <= {*BALANCERS.names()} - {"coba", "uniform"}
    assert "coba" in methods_with("tau") and {"pace", "selfpaced"} <= set(methods_with("gain"))
    assert methods_with("made_up") == methods_with(3) == []
