"""Of records that are alike one is kept: the same pairs as comparing all with all finds, the better record, and validation first."""

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mftcoder.curation.duplicates import choice
from mftcoder.curation.duplicates import sketches as sketching
from mftcoder.curation.duplicates.choice import Part, candidates, choose, find_duplicates, groups, jaccard
from mftcoder.curation.duplicates.config import DedupConfig
from mftcoder.curation.duplicates.ngrams import ngram_hashes, words_of
from mftcoder.curation.duplicates.sketches import Sketches, compared, ngram_sets, sketch
from mftcoder.curation.example import Example
from mftcoder.data.records.formats import read_record
from mftcoder.errors import DataError

WORDS = [f"word{number}" for number in range(500)]


def example(question: str, answer: str) -> Example:
    line = json.dumps({"prompt": question, "completion": answer}).encode()
    return Example(read_record(line, format="auto", task="t", origin="f:1"))


def part(examples: Sequence[Example], config: DedupConfig, *, task: int = 0, validation: bool = False) -> Part:
    return Part(sketch(list(enumerate(examples, start=1)), config), task, validation)


def dropped(parts: Sequence[Part], config: DedupConfig) -> list[tuple[tuple[int, int], tuple[int, int], bool]]:
    return [(found.dropped, found.kept, found.is_exact) for found in find_duplicates(parts, config)]


def random_text(source: random.Random, length: int) -> str:
    return " ".join(source.choices(WORDS, k=length))


def changed(source: random.Random, text: str, words: int) -> str:
    found = text.split()
    for place in source.sample(range(len(found)), words):
        found[place] = "another"
    return " ".join(found)


def test_kept_records_are_no_near_duplicates_and_each_dropped_one_has_a_near_kept_one() -> None:
    pytest.importorskip("rensa")
    source = random.Random(3)
    config = DedupConfig()
    originals = [random_text(source, source.randint(20, 80)) for _ in range(60)]
    copies = [changed(source, text, source.randint(0, 4)) for text in originals for _ in range(3)]
    examples = [example("Write it.", text) for text in (*originals, *copies)]
    sets = [ngram_sets([compared(one, config)], config.ngram)[0] for one in examples]
    found = dropped([part(examples, config)], config)
    gone = {index for (_, index), *_ in found}
    kept = [index for index in range(len(examples)) if index not in gone]
    assert len(gone) > 60
    assert all(jaccard(sets[a], sets[b]) < config.threshold for a, b in itertools.combinations(kept, 2))
    assert all(jaccard(sets[a], sets[b]) >= config.threshold for (_, a), (_, b), _ in found)


def test_groups_share_nothing_and_choosing_in_each_of_them_drops_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rensa")
    monkeypatch.setattr(choice, "_RECORDS_OF_A_GROUP", 10)
    source = random.Random(6)
    config = DedupConfig()
    originals = [random_text(source, source.randint(20, 80)) for _ in range(40)]
    copies = [changed(source, text, source.randint(0, 4)) for text in originals for _ in range(3)]
    parts = [part([example("Write it.", text) for text in texts], config) for texts in (originals, copies, copies[:20])]
    found = groups(candidates(parts, config))
    buckets = [{*group.texts.tolist(), *(group.buckets + 1000).ravel().tolist()} - {-1, 999} for group in found]
    assert len(found) > 5
    assert all(one.isdisjoint(other) for one, other in itertools.combinations(buckets, 2))
    sets = {number: one.sketches.sets for number, one in enumerate(parts)}
    dropped_apart = {duplicate for group in found for duplicate in choose(group, sets, config.threshold)}
    assert dropped_apart == set(find_duplicates(parts, config)) != set()


def test_the_longest_answer_is_kept_and_with_keep_first_the_first_one() -> None:
    pytest.importorskip("rensa")
    text = random_text(random.Random(1), 60)
    examples = [example("Write it.", text), example("Write it.", f"{text} and more")]
    for keep, expected in (("longest", 0), ("first", 1)):
        config = DedupConfig(keep=keep)
        assert [place[1] for place, *_ in dropped([part(examples, config)], config)] == [expected]


def test_training_gives_way_to_validation_even_if_it_is_longer_or_of_another_task() -> None:
    pytest.importorskip("rensa")
    text = random_text(random.Random(1), 60)
    config = DedupConfig()
    training = part([example("Write it.", f"{text} and more")], config, task=0)
    validation = part([example("Write it.", text)], config, task=1, validation=True)
    assert dropped([training, validation], config) == [((0, 0), (1, 0), False)]
    within = DedupConfig(within="task")
    assert dropped([training, validation], within) == []


def test_the_opposite_task_on_the_same_code_is_no_duplicate() -> None:
    pytest.importorskip("rensa")
    source = random.Random(2)
    one, other = random_text(source, 50), random_text(source, 50)
    config = DedupConfig()
    assert dropped([part([example(one, other), example(other, one)], config)], config) == []


FUNCTION = """def add_all(numbers, start):
    total = start
    for number in numbers:
        if number > 3:
            total += number * 2
        else:
            total -= number
    return total
"""
RENAMED = """def f(xs: list, s):  # sum
    t = (s)
    for x in xs:
        if x > 0x3: t += (x * 2)
        else:
            t -= x

    return t
"""


@pytest.mark.parametrize("near", [True, False])
def test_renamed_code_is_a_duplicate_only_by_option(near: bool) -> None:
    pytest.importorskip("rensa")
    examples = [example("Write it.", f"Here:\n```python\n{code}```") for code in (FUNCTION, RENAMED)]
    for code, expected in (("as_written", []), ("renamed", [((0, 1), (0, 0), True)])):
        config = DedupConfig.model_validate({"code": code, "near": near})
        assert dropped([part(examples, config)], config) == expected


def test_renamed_code_in_training_gives_way_to_validation() -> None:
    pytest.importorskip("rensa")
    config = DedupConfig(code="renamed")
    longer = FUNCTION.replace("return total", "return total + 1")
    training = part([example("Write it.", code) for code in (longer, FUNCTION, "x = 1")], config, task=0)
    validation = part([example("Write it.", RENAMED)], config, task=1, validation=True)
    assert dropped([training, validation], config) == [((0, 0), (1, 0), False), ((0, 1), (1, 0), True)]


def test_the_question_still_tells_records_with_the_same_code_apart() -> None:
    pytest.importorskip("rensa")
    source = random.Random(4)
    config = DedupConfig(code="renamed")
    examples = [example(random_text(source, 60), code) for code in (FUNCTION, RENAMED)]
    assert dropped([part(examples, config)], config) == []
    answers = DedupConfig(code="renamed", on="answer")
    assert len(dropped([part(examples, answers)], answers)) == 1


def test_exact_duplicates_need_no_library_and_see_through_whitespace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketching, "minhash_library", lambda: pytest.fail("was imported"))
    config = DedupConfig(near=False)
    examples = [example("Add.", "a + b"), example("Add.", "a +\n  b"), example("Add.", "a - b")]
    assert dropped([part(examples, config)], config) == [((0, 0), (0, 1), True)]


def test_without_the_library_near_duplicates_are_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rensa", None)
    with pytest.raises(DataError, match=r"pip install 'mftcoder\[curate\]'"):
        sketching.minhash_library()


@pytest.mark.parametrize("length", [1, 2, 5])
def test_ngrams_are_runs_of_words_whichever_texts_are_hashed_together(length: int) -> None:
    source = random.Random(length)
    texts = [random_text(source, source.randint(1, 9)) for _ in range(40)]
    texts += ["", " ", "a, b!", "a b", "a\x1cb", "写一个 a_b", "é a b c", "a b", "a b c d e f", "9" * 100]
    hashes: dict[tuple[str, ...], int] = {}
    for text, found in zip(texts, ngram_hashes(texts, length), strict=True):
        words = words_of(text)
        runs = [tuple(words[start : start + length]) for start in range(max(1, len(words) - length + 1))]
        assert len(found) == (len(runs) if words else 0)
        assert all(hashes.setdefault(run, value) == value for run, value in zip(runs, found.tolist(), strict=False))
    assert len(set(hashes.values())) == len(hashes) > 40


def test_ngrams_of_long_texts_and_long_words_do_not_depend_on_the_texts_before_them() -> None:
    source = random.Random(5)
    texts = [random_text(source, 30_000), "x" * 200_000, f"a {'y' * 100_000} b", random_text(source, 20), "é " * 50_000]
    for before in (["z"], ["z"] * 40_000, ["x" * 65_535], ["x" * 65_536, ""]):
        together = ngram_hashes([*before, *texts], 3)[len(before) :]
        assert all(
            np.array_equal(ngram_hashes([text], 3)[0], found) for text, found in zip(texts, together, strict=True)
        )
    assert len(ngram_hashes(texts, 3)[0]) == 30_000 - 2
    assert ngram_hashes([], 3) == []


def test_a_text_without_words_is_its_only_word() -> None:
    one, other, blank = ngram_hashes([" +++ ", "---", "\n"], 5)
    assert (len(one), len(other), len(blank)) == (1, 1, 0)
    assert one.tolist() != other.tolist()


def test_the_ngrams_of_a_record_are_sorted_and_each_stands_once() -> None:
    examples = [example("Q?", "a b a b a b a b"), example("a b", "a b"), example("?", "c")]
    parts = [compared(one, DedupConfig()) for one in examples]
    ngrams, offsets = ngram_sets(parts, 2)
    sets = [ngrams[start:end].tolist() for start, end in itertools.pairwise(offsets.tolist())]
    assert sets == [sorted(set(found)) for found in sets]
    assert [len(found) for found in sets] == [3, 2, 2]  # a question's `a b` is not the answer's
    assert sets == [ngram_sets([part], 2)[0].tolist() for part in parts]


def test_a_chinese_character_is_a_word() -> None:
    assert words_of("写一个 sort_all 函数") == ["写", "一", "个", "sort_all", "函", "数"]


def test_sketches_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    pytest.importorskip("rensa")
    made = sketch([(7, example("A b c?", "d e f g h i")), (9, example("Q?", "r"))], DedupConfig())
    made.save(tmp_path / "block")
    found = Sketches.load(tmp_path / "block")
    assert all(np.array_equal(value, getattr(found, name)) for name, value in vars(made).items())


@pytest.mark.parametrize("config", [{"threshold": 0.5}, {"threshold": 1.1}, {"ngram": 0}, {"keep": "best"}])
def test_options_out_of_range_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        DedupConfig.model_validate(config)
