"""Groups of sampled answers as tokens: each answer is a sample with its reward; what gives no signal is refused with its reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mftcoder.config.load import parse_config
from mftcoder.data.batches.loader import TrainLoader
from mftcoder.data.prepared.store import Store, prepare
from mftcoder.data.rendering.groups import read_group
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import ConfigError, DataError

MakeStore = Callable[..., Store]


def record(**fields: Any) -> dict[str, Any]:
    return {"prompt": "q", "completions": ["a", "b", "c"], "rewards": [1, 0.5, 0], **fields}


def line(**fields: Any) -> bytes:
    return json.dumps(record(**fields)).encode()


def test_a_group_is_read_from_a_text_or_from_turns() -> None:
    for prompt in ("q", [{"role": "user", "content": "q"}]):
        group = read_group(line(prompt=prompt, trained=[True, False, True]), "t", "o")
        assert [answer.messages[-1].content for answer in group.answers] == ["a", "b", "c"]
        assert [message.trained for message in group.answers[0].messages] == [False, True]
        assert (group.rewards, group.trained) == ((1.0, 0.5, 0.0), (True, False, True))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"rewards": [1, 0]}, "3 completions have 2 rewards and 3 marks 'trained'"),
        ({"completions": ["a"], "rewards": [1]}, "a group of one answer has no advantage"),
        ({"rewards": [0.5, 0.5, 0.5]}, "all 3 rewards are 0.5, so the group has no signal"),
        ({"rewards": [0.3, 0.1 + 0.2, 0.3]}, "all 3 rewards are 0.3, so the group has no signal"),
        ({"rewards": [1e-170, 0, 0]}, "so the group has no signal"),
        ({"rewards": [1e200, -1e200, 0]}, r"a reward is out of range: 1e\+200, at most 1e\+09"),
        ({"rewards": [1, None, 0]}, "'rewards' must be a list of numbers"),
        ({"rewards": "1, 0, 0"}, "'rewards' must be a list of numbers"),
        ({"completions": ["a", 2, "c"]}, "'completions' must be a list of texts"),
        ({"completions": ["a", " ", "c"]}, "completion 2: content is empty"),
        ({"trained": [False] * 3}, "no answer of the group is trained"),
    ],
)
def test_what_is_no_group_is_refused_with_its_reason(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem.replace("(", r"\(")):
        read_group(line(**fields), "t", "o")


@pytest.mark.parametrize("reward", ["NaN", "1e999"])
def test_a_reward_that_is_no_finite_number_is_refused(reward: str) -> None:
    with pytest.raises(DataError, match=r"not valid JSON|not a finite number"):
        read_group(line().replace(b"0.5", reward.encode()), "t", "o")


def test_missing_fields_are_named_together() -> None:
    with pytest.raises(DataError) as found:
        read_group(b'{"prompt": "q"}', "t", "o")
    assert found.value.problems == ("'completions' is missing", "'rewards' is missing")


@pytest.fixture
def make_store(tmp_path: Path, tiny_tokenizer_dir: Path, make_jsonl: Callable[..., Path]) -> MakeStore:
    def make(*records: dict[str, Any], kind: Any = "grpo", **data: Any) -> Store:
        raw = {
            "model": str(tiny_tokenizer_dir),
            "tasks": {"t": {"files": str(make_jsonl("t.jsonl", records)), "kind": kind}},
            "data": {"max_length": 64, "val_size": 0.0, "num_proc": 1, "cache_dir": str(tmp_path / "cache"), **data},
            "output_dir": str(tmp_path / "run"),
        }
        make.config = parse_config(raw, origin="test")  # type: ignore[attr-defined]
        return prepare(make.config)  # type: ignore[attr-defined]

    return make


def test_each_trained_answer_is_a_sample_with_the_mean_and_deviation_of_its_whole_group(
    make_store: MakeStore, tiny_tokenizer_dir: Path
) -> None:
    store = make_store(record(trained=[True, False, True]))
    samples = store.train(0)
    assert (len(samples), samples.has_rewards, samples.has_pairs, samples.is_unit) == (2, True, False, True)
    deviation = np.std([1, 0.5, 0])
    np.testing.assert_allclose(samples.rewards, [[1, 0], [0.5, 0.5], [deviation, deviation]])
    tokenizer = load_tokenizer(str(tiny_tokenizer_dir))
    for index, answer in enumerate("ac"):
        targets = samples.sample(index).targets
        assert tokenizer.decode(targets[targets >= 0].tolist()) == f"{answer}<|im_end|>"


def test_the_loss_is_a_mean_over_answers(make_store: MakeStore) -> None:
    store = make_store(record(), record(prompt="r"), max_length=512)
    step = TrainLoader(store, make_store.config).step(0)  # type: ignore[attr-defined]
    assert step.counts.units.tolist() == step.counts.samples.tolist() == [6]
    assert step.counts.tokens[0] > 6


def test_new_data_of_a_run_begin_with_their_first_row(make_store: MakeStore) -> None:
    """All answers of an iteration are trained once, at whatever step of the run it begins."""
    store = make_store(*(record(prompt=f"question {n}") for n in range(9)))
    config = make_store.config.model_copy()  # type: ignore[attr-defined]
    config = config.model_copy(update={"train": config.train.model_copy(update={"num_train_epochs": 1.0})})
    loader = TrainLoader(store, config, first_step=7)
    seen = [tuple(pair) for data in loader.steps(7) for batch in data.micro_batches for pair in batch.samples.tolist()]
    assert sorted(seen) == [(0, index) for index in range(27)]
    assert loader.total_steps == 7 + TrainLoader(store, config).total_steps


def test_an_answer_that_does_not_fit_into_a_row_is_a_problem_of_its_record(make_store: MakeStore) -> None:
    with pytest.raises(
        DataError, match=r"t\.jsonl:1: completion 2 and its prompt have \d+ positions, and a row has 64"
    ):
        make_store(record(completions=["a", "long " * 80, "c"]))


def test_a_task_of_sampled_answers_takes_no_format_and_no_token_normalization(tmp_path: Path) -> None:
    raw: dict[str, Any] = {"model": "m", "tasks": {"t": {"path": "x", "kind": "grpo"}}, "output_dir": str(tmp_path)}
    for section, message in (
        ({"loss": {"normalization": "token"}}, "token has no meaning for task 't', whose samples are sampled answers"),
        ({"loss": {"focal": "sample"}}, "sample has no meaning for task 't'"),
        ({"tasks": {"t": {"path": "x", "kind": "grpo", "format": "alpaca"}}}, "records of kind grpo are read by their"),
        (
            {"tasks": {"t": {"path": "x", "kind": {"name": "grpo", "epsilon": 1.5}}}},
            "a probability cannot fall by that",
        ),
        (
            {"tasks": {"t": {"path": "x", "kind": {"name": "grpo", "beta": 0.1}}}, "adapter": "full"},
            r"tasks\.t\.kind\.beta: needs the untrained model",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_config({**raw, **section}, origin="test")
