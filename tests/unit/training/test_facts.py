"""The validation data that a metric needs is checked before a model is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mftcoder.config.load import parse_config
from mftcoder.data.batches.loader import ValidationLoader
from mftcoder.data.prepared.store import prepare
from mftcoder.errors import ConfigError, DataError
from mftcoder.training.facts import check_metric, check_schedule, label_warnings

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


@pytest.mark.parametrize(
    ("steps", "train", "fits"),
    [
        (10, {"warmup_steps": 4, "decay_steps": 6}, True),
        (9, {"warmup_steps": 4, "decay_steps": 6}, False),
        (9, {"warmup_steps": 0.1, "decay_steps": 0.2}, True),
        (9, {"warmup_steps": 0.9, "decay_steps": 0.2}, False),
        (9, {"warmup_steps": 9}, False),  # a tenth of the run is decay
        (9, {"warmup_steps": 20, "lr_scheduler_type": "cosine"}, True),
    ],
)
def test_warm_up_and_decay_must_fit_into_the_run(steps: int, train: dict[str, Any], fits: bool) -> None:
    schedule = {"lr_scheduler_type": "warmup_stable_decay", **train}
    raw = {"model": "m", "tasks": {"a": "a"}, "train": schedule, "output_dir": "run"}
    config = parse_config(raw, origin="a.yaml")
    if fits:
        check_schedule(config, steps)
        return
    with pytest.raises(ConfigError, match=rf"do not fit into the run's {steps} steps"):
        check_schedule(config, steps)


@pytest.fixture
def labelled(tmp_path: Path, make_jsonl: Callable[..., Path], tiny_tokenizer_dir: Path) -> Callable[..., list[str]]:
    """The warnings of a KTO task with these labels."""

    def found(labels: list[bool], **kind: float) -> list[str]:
        records = [{"prompt": f"q{n}", "completion": f"a{n}", "label": label} for n, label in enumerate(labels)]
        raw = {
            "model": str(tiny_tokenizer_dir),
            "tasks": {"kto": {"path": str(make_jsonl("kto.jsonl", records)), "kind": {"name": "kto", **kind}}},
            "data": {"val_size": 0, "cache_dir": str(tmp_path / "cache")},
            "output_dir": str(tmp_path / "run"),
        }
        config = parse_config(raw, origin="a.yaml")
        return label_warnings(config, prepare(config))

    return found


@pytest.mark.parametrize(
    ("labels", "warning"),
    [
        ([True], "tasks.kto: has one labelled answer, so KTO's z is that answer's own gain"),
        ([True, True, True], "tasks.kto: all 3 answers are desirable. KTO compares them with undesirable ones"),
        ([False, False], "tasks.kto: all 2 answers are undesirable. KTO compares them with desirable ones"),
        ([True, False], None),
    ],
)
def test_labels_that_say_too_little_are_warned_of(
    labels: list[bool], warning: str | None, labelled: Callable[..., list[str]]
) -> None:
    found = labelled(labels)
    assert len(found) == (warning is not None)
    assert warning is None or found[0].startswith(warning)


@pytest.mark.parametrize("label", [True, False])
def test_labels_of_weight_zero_alone_are_refused(label: bool, labelled: Callable[..., list[str]]) -> None:
    name = "desirable" if label else "undesirable"
    with pytest.raises(
        DataError, match=f"all 2 answers are {name}, and kind.{name}_weight is 0: nothing would be trained"
    ):
        labelled([label, label], **{f"{name}_weight": 0.0})
    assert labelled([True, False], **{f"{name}_weight": 0.0}) == []
