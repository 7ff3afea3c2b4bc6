"""Instruction-following difficulty: what the model reads, the bounds, and what a stopped run has done already."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mftcoder.app.data import curate as verb
from mftcoder.app.data.curate import curate
from mftcoder.curation.filters.config import DifficultyConfig
from mftcoder.curation.filters.difficulty import AnswerPairs, IdsAndTrained, difficulties
from mftcoder.curation.pipeline import run as running
from mftcoder.curation.pipeline.recipe import parse_recipe
from mftcoder.data.records.conversation import Conversation
from mftcoder.data.records.formats import read_record
from mftcoder.errors import ConfigError


class Reader:
    """Losses that a test chooses: behind the question, and alone (recognized by its first token)."""

    def __init__(self, behind: float, alone: float):
        self.behind, self.alone = behind, alone
        self.read: list[IdsAndTrained] = []

    def mean_losses(self, samples: Sequence[IdsAndTrained], batch_positions: int) -> list[float]:
        self.read += samples
        return [self.alone if trained[1:].all() else self.behind for _, trained in samples]


def conversation(record: dict) -> Conversation:
    return read_record(json.dumps(record).encode(), format="auto", task="t", origin="f:1")


CHAT = {"messages": [{"role": role, "content": text} for role, text in (("user", "Add one and one, please."), ("assistant", "two"), ("user", "And two?"), ("assistant", "four in all"))]}  # fmt: skip


def test_the_last_answer_is_read_behind_all_before_it_and_alone_behind_bos(tiny_tokenizer_dir: Path) -> None:
    pairs = AnswerPairs(DifficultyConfig(model=str(tiny_tokenizer_dir)))
    (pair,) = pairs.of([conversation(CHAT)])
    assert pair is not None
    (ids, trained), (alone, counted) = pair.behind_question, pair.alone
    text = pairs.tokenizer.decode(ids[trained].tolist())
    assert text.startswith("four in all")
    assert "two" not in text
    assert "Add one and one, please." in pairs.tokenizer.decode(ids[~trained].tolist())
    assert alone.tolist() == [pairs.tokenizer.bos_id, *ids[trained].tolist()]
    assert counted.tolist() == [False] + [True] * int(trained.sum())


def test_the_value_is_the_loss_behind_the_question_over_the_loss_alone(tiny_tokenizer_dir: Path) -> None:
    pairs = AnswerPairs(DifficultyConfig(model=str(tiny_tokenizer_dir)))
    assert difficulties([conversation(CHAT)], pairs, Reader(1.0, 4.0), 100) == [0.25]
    assert difficulties([conversation(CHAT)], pairs, Reader(1.0, 0.0), 100) == [None]
    assert difficulties([conversation({"text": "no question"})], pairs, Reader(1.0, 4.0), 100) == [None]


def test_an_answer_is_cut_at_max_length_and_one_beyond_it_is_not_judged(tiny_tokenizer_dir: Path) -> None:
    whole = AnswerPairs(DifficultyConfig(model=str(tiny_tokenizer_dir)))
    (full,) = whole.of([conversation(CHAT)])
    assert full is not None
    first = int(np.flatnonzero(full.behind_question[1])[0])
    cut = AnswerPairs(DifficultyConfig(model=str(tiny_tokenizer_dir), max_length=first + 1))
    (pair,) = cut.of([conversation(CHAT)])
    assert pair is not None
    assert int(pair.behind_question[1].sum()) == len(pair.alone[0]) - 1 == 2
    beyond = AnswerPairs(DifficultyConfig(model=str(tiny_tokenizer_dir), max_length=first - 1))
    assert list(beyond.of([conversation(CHAT)])) == [None]


@pytest.mark.parametrize(("keep", "kept"), [((0.25, 0.5), True), ((0.26, None), False), ((None, 0.24), False)])
def test_a_bound_is_inside(keep: tuple[float | None, float | None], kept: bool) -> None:
    assert DifficultyConfig(model="m", keep=keep).keeps(0.25) is kept


def recipe(folder: Path, model: Path, **options: Any) -> Any:
    steps = [{"difficulty": {"model": str(model), "dtype": "float32", **options}}]
    return parse_recipe(
        {"tasks": {"a": str(folder / "a.jsonl")}, "steps": steps, "output_dir": str(folder / "out")}, origin="recipe"
    )


def write(folder: Path, count: int) -> None:
    lines = [json.dumps({"prompt": f"Question {n}?", "completion": f"answer {n} " * (n + 1)}) for n in range(count)]
    (folder / "a.jsonl").write_text("\n".join([*lines, json.dumps({"text": "no question"})]) + "\n")


def test_a_recipe_runs_a_real_model_labels_what_it_keeps_and_names_what_it_drops(
    tmp_path: Path, tiny_llama_dir: Path
) -> None:
    write(tmp_path, 6)
    curate(recipe(tmp_path, tiny_llama_dir, keep=[None, None], label=True))
    records = [json.loads(line) for line in (tmp_path / "out" / "a" / "train.jsonl").read_text().splitlines()]
    values = [record["difficulty"] for record in records if "difficulty" in record]
    assert len(records) == 7
    assert len(values) == 6
    bound = sorted(values)[2]
    curate(recipe(tmp_path, tiny_llama_dir, keep=[None, bound]))
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [entry["value"] for entry in dropped] == [value for value in values if value > bound]
    assert {entry["rule"] for entry in dropped} == {"difficulty"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["verdicts"] == [{"step": "1-difficulty", "verdict": "not judged", "records": 1}]


def test_a_stopped_run_does_not_read_its_finished_blocks_again(
    tmp_path: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 60)
    monkeypatch.setattr(running, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(running, "_SMALL_INPUT", 1 << 30)

    class Stops(Reader):
        def mean_losses(self, samples: Sequence[IdsAndTrained], batch_positions: int) -> list[float]:
            if len(self.read) > 40:
                raise KeyboardInterrupt
            return super().mean_losses(samples, batch_positions)

    stopped, after = Stops(1.0, 2.0), Reader(1.0, 2.0)
    for reader in (stopped, after):
        monkeypatch.setattr(verb, "_load_scorer", lambda config, reader=reader: reader)
        if reader is stopped:
            with pytest.raises(KeyboardInterrupt):
                curate(recipe(tmp_path, tiny_tokenizer_dir))
        else:
            curate(recipe(tmp_path, tiny_tokenizer_dir))
    assert len(stopped.read) > 40
    assert len(stopped.read) + len(after.read) == 2 * 60


def test_a_step_that_would_do_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the step would do nothing"):
        recipe(tmp_path, tmp_path, keep=[None, None])
    with pytest.raises(ConfigError, match=r"0\.9 is more than 0\.1"):
        recipe(tmp_path, tmp_path, keep=[0.9, 0.1])
