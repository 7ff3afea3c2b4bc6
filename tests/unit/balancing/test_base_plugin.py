"""A balancer of another package: it is found by its entry point, has options of its own, and is named if it is broken."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mftcoder import registry
from mftcoder.balancing.base import build_balancer
from mftcoder.config.balancer import BalancerConfig, option_names
from mftcoder.config.load import parse_config
from mftcoder.errors import ConfigError

RUN = {"model": "some/model", "tasks": {"tests": "data/tests"}, "output_dir": "runs/x"}


def parse(balancer: Any) -> BalancerConfig:
    return parse_config({**RUN, "balancer": balancer}, origin="a.yaml").balancer


def problem(balancer: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        parse(balancer)
    return str(raised.value)


PLUGIN = '''
import numpy as np
from mftcoder.balancing.base import Passive, TaskWeights, weighted
from mftcoder.config.balancer import BalancerConfig
from mftcoder.config.section import PositiveFloat

class TiltOptions(BalancerConfig):
    """Options of tilt."""
    strength: PositiveFloat = 3.0
    """How much more the first task counts."""

class Tilt(Passive):
    """More weight to the first task."""
    options_type = TiltOptions

    def __init__(self, config, facts):
        self.facts, self.strength = facts, config.strength

    def due(self, step):
        return True

    def observe(self, step, train, validation, gradient_norms=None):
        return weighted(self.facts, np.array([self.strength, *np.ones(self.facts.num_tasks - 1)]))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
'''


@pytest.fixture
def tilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that registers the balancer `tilt` and, as `broken`, one that cannot be imported."""
    (tmp_path / "tilt_plugin.py").write_text(PLUGIN)
    info = tmp_path / "tilt_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tilt-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[mftcoder.balancer]\ntilt = tilt_plugin:Tilt\nbroken = no_such_package:Balancer\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    registry._entry_points.cache_clear()
    yield
    registry._entry_points.cache_clear()
    sys.modules.pop("tilt_plugin", None)


@pytest.mark.usefixtures("tilt")
def test_it_has_options_of_its_own(facts: Callable, losses: Callable) -> None:
    config = parse({"name": "tilt", "strength": 2})
    assert option_names("tilt") == ["strength"] and parse("tilt").model_dump() == {"name": "tilt", "strength": 3.0}
    assert parse(config.model_dump(mode="json")) == config
    weights = build_balancer(config, facts(2), ("a", "b")).observe(1, losses([1.0, 1.0]), None)
    assert weights.values.tolist() == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.usefixtures("tilt")
@pytest.mark.parametrize(
    ("balancer", "expected"),
    [
        ({"name": "tilt", "strenght": 2}, "a.yaml: balancer.strenght: unknown key. Did you mean 'strength'?"),
        ({"name": "tilt", "strength": -2}, "a.yaml: balancer.strength: Input should be greater than 0, not -2"),
        (
            "broken",
            "balancer 'broken': no_such_package:Balancer, which another package registers, cannot be imported: "
            "No module named 'no_such_package'. Update or remove that package.",
        ),
    ],
    ids=["unknown option", "wrong value", "broken package"],
)
def test_a_mistake_in_it_is_one_line(balancer: Any, expected: str) -> None:
    assert problem(balancer) == expected
