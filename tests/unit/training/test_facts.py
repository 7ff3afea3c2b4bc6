"""The validation data that a metric needs is checked before a model is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mftcoder.config.load import parse_config
from mftcoder.data.batches.loader import ValidationLoader
from mftcoder.data.prepared.store import prepare
from mftcoder.errors import ConfigError
from mftcoder.training.facts import check_metric

Check = Callable[..., None]


@pytest.fixture
def check(tmp_path: Path, make_jsonl: Callable[..., Path], tiny_tokenizer_dir: Path) -> Check:
    """`check(metric_for_best_model="loss/docs")`: check a run whose task `tests` alone has validation data."""
    record = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]} for n in range(9)
    ]
    files = {name: str(make_jsonl(f"{name}.jsonl", record[start:stop])) for name, start, stop in
             (("tests", 0, 4), ("held_out", 4, 6), ("docs", 6, 9))}  # fmt: skip

    def check(*, held_out: bool = True, **train: Any) -> None:
        tests = {"files": files["tests"], **({"validation": files["held_out"]} if held_out else {})}
        raw = {
            "model": str(tiny_tokenizer_dir),
            "tasks": {"tests": tests, "docs": {"files": files["docs"]}},
            "data": {"max_length": 64, "val_size": 0, "cache_dir": str(tmp_path / "cache")},
            "train": train,
            "output_dir": str(tmp_path / "run"),
        }
        config = parse_config(raw, origin="a.yaml")
        check_metric(config, ValidationLoader(prepare(config), config))

    return check


def test_one_task_with_validation_data_is_enough_for_the_mean(check: Check) -> None:
    check(early_stopping_patience=2)
    check(metric_for_best_model="loss/tests")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric_for_best_model": "loss/docs"}, "task 'docs' has no validation rows. Raise data.val_size"),
        (
            {"early_stopping_patience": 2, "held_out": False},
            "train.early_stopping_patience: no task has validation rows",
        ),
        ({"early_stopping_patience": 2, "eval_strategy": "no"}, "counts validations without a better metric, but"),
    ],
)
def test_a_metric_without_data_is_refused(check: Check, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(**fields)


def test_a_run_without_validation_needs_no_validation_data(check: Check) -> None:
    check(held_out=False)
    check(metric_for_best_model="loss/docs", eval_strategy="no")
