"""What a comparison changes in the config of each run."""

from pathlib import Path

import pytest

from mftcoder.app.training.compare import alone_overrides
from mftcoder.config.load import parse_config, with_overrides


@pytest.mark.parametrize(("given", "expected"), [(20, 5), (3, 1), (0.2, 0.2), (None, None)])
def test_a_task_alone_has_warm_up_and_decay_in_proportion_to_its_steps(
    tmp_path: Path, given: float | None, expected: float | None
) -> None:
    raw = {
        "model": "m",
        "tasks": {"a": "a", "b": "b"},
        "train": {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 8, "decay_steps": given},
        "output_dir": str(tmp_path),
    }
    config = parse_config(raw, origin="test")
    alone = with_overrides(config, alone_overrides(config, "b", 25, 100))
    assert (alone.task_names, alone.train.max_steps) == (("b",), 25)
    assert (alone.train.warmup_steps, alone.train.decay_steps) == (2, expected)
