"""Pairs as tokens: two texts with one prompt that share a row; what is no pair is refused with its reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mftcoder.config.load import parse_config
from mftcoder.data.batches.loader import TrainLoader
from mftcoder.data.prepared.store import Store, prepare
from mftcoder.data.rendering.groups import read_group
from mftcoder.data.rendering.pairs import read_labelled, read_pair
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import DataError

MakeStore = Callable[..., Store]
ASK = {"role": "user", "content": "q"}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def line(**record: Any) -> bytes:
    return json.dumps(record).encode()


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": [ASK, answer("a")], "rejected": [ASK, answer("b")]},
        {"chosen": [{"role": "human", "content": "q"}, {"role": "bot", "content": "a"}], "rejected": [ASK, answer("b")]},
        {"chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "rejected": [ASK, answer("b")]},
        {"prompt": "q", "chosen": "a", "rejected": "b", "score": 1},
        {"prompt": [ASK], "chosen": [answer("a")], "rejected": [answer("b")]},
        {"prompt": "q", "chosen": [ASK, answer("a")], "rejected": [ASK, answer("b")]},
    ],
)  # fmt: skip
def test_pairs_are_read_from_chats_and_from_texts(record: dict[str, Any]) -> None:
    pair = read_pair(line(**record), "t", "o")
    assert [(m.role, m.content, m.trained) for m in pair.first.messages] == [
        ("user", "q", False),
        ("assistant", "a", True),
    ]
    assert pair.second is not None and pair.second.messages[-1].content == "b"


@pytest.mark.parametrize(
    "fields",
    [{"prompt": "q"}, {"prompt": [{"role": "system", "content": "Be brief."}, ASK]}],
    ids=["beside", "and in the prompt"],
)
def test_the_field_system_comes_before_the_prompt_and_stands_once(fields: dict[str, Any]) -> None:
    pair = read_pair(line(system="Be brief.", chosen="a", rejected="b", **fields), "t", "o")
    labelled = read_labelled(line(system="Be brief.", completion="a", label=True, **fields), "t", "o")
    group = read_group(line(system="Be brief.", completions=["a", "b"], rewards=[0, 1], **fields), "t", "o")
    for side in (pair.first, pair.second, labelled.first, *group.answers):
        assert side is not None
        assert [(m.role, m.content) for m in side.messages[:-1]] == [("system", "Be brief."), ("user", "q")]
    with pytest.raises(DataError, match="a system message must be the first message"):
        read_pair(
            line(system="Be long.", prompt=[{"role": "system", "content": "x"}, ASK], chosen="a", rejected="b"),
            "t",
            "o",
        )


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "'chosen' and 'rejected' are equal"),
        ({"chosen": [ASK, answer("a")], "rejected": [{**ASK, "content": "r"}, answer("b")]}, "the prompts differ"),
        ({"chosen": [ASK, answer("a"), ASK], "rejected": [ASK, answer("b")]}, "the last turn must be the assistant's"),
        ({"chosen": "a", "rejected": "b"}, "there is no prompt before the answer"),
        ({"prompt": "q", "chosen": "a"}, "'rejected' is missing"),
        ({"prompt": "q", "chosen": " ", "rejected": "b"}, "^chosen: message 2: content is empty$"),
        ({"prompt": "q", "chosen": "a", "rejected": "\n"}, "^rejected: message 2: content is empty$"),
        ({"prompt": " ", "chosen": "a", "rejected": ""}, "^chosen and rejected: message 1: .* empty\nrejected: message 2: .* empty$"),
        ({"prompt": "q", "chosen": [{"role": "robot", "content": "a"}], "rejected": "b"}, "chosen: message 1: role 'robot'"),
        ({"messages": [ASK, answer("a")]}, "'chosen' is missing"),
        ({"prompt": "p", "chosen": [ASK, answer("a")], "rejected": "b"}, "'chosen' is a whole chat, and it does not begin with 'prompt'"),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused_with_its_reason(record: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_pair(line(**record), "t", "o")


SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("prompt", "side", "roles"),
    [
        ([SYSTEM, ASK], [ASK, answer("a")], "system user assistant"),
        ("q", [SYSTEM, ASK, answer("a")], "system user assistant"),
        ([SYSTEM], [ASK, answer("a")], "system user assistant"),
        ("q", [ASK, answer("x"), ASK, answer("a")], "user assistant user assistant"),
        ("q", [answer("x"), ASK, answer("a")], "user assistant user assistant"),
    ],
)
def test_a_prompt_that_a_chat_repeats_stands_once(prompt: Any, side: list[Any], roles: str) -> None:
    pair = read_pair(line(prompt=prompt, chosen=side, rejected=[*side[:-1], answer("b")]), "t", "o")
    labelled = read_labelled(line(prompt=prompt, messages=side, label=True), "t", "o")
    for read in (pair.first, pair.second, labelled.first):
        assert read and " ".join(message.role for message in read.messages) == roles


def test_a_fault_of_the_prompt_is_named_once() -> None:
    with pytest.raises(DataError) as caught:
        read_pair(line(prompt=[{"role": "robot", "content": "q"}], chosen="a", rejected="b"), "t", "o")
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(("label", "desirable"), [(True, True), (False, False), (1, True), (0, False)])
def test_labelled_answers_are_read(label: Any, desirable: bool) -> None:
    for record in ({"prompt": "q", "completion": "a"}, {"messages": [ASK, answer("a")]}):
        pair = read_labelled(line(**record, label=label), "t", "o")
        assert pair.desirable == desirable and pair.second is None and pair.first.messages[-1].content == "a"


@pytest.mark.parametrize("label", ["good", None, 2, 0.5, -1, []])
def test_a_label_that_is_neither_is_refused(label: Any) -> None:
    with pytest.raises(DataError, match="neither true"):
        read_labelled(line(prompt="q", completion="a", label=label), "t", "o")
    with pytest.raises(DataError, match="'label' is missing; a pair of chosen and rejected is for kind: dpo"):
        read_labelled(line(prompt="q", chosen="a", rejected="b"), "t", "o")


@pytest.fixture
def make_store(tiny_tokenizer_dir: Path, make_jsonl: Callable[..., Path]) -> MakeStore:
    def make(records: list[Any], kind: str = "dpo", **data: Any) -> tuple[Any, Store]:
        raw = {
            "model": str(tiny_tokenizer_dir),
            "tasks": {"prefs": {"path": str(make_jsonl("prefs.jsonl", records)), "kind": kind}},
            "data": {"num_proc": 1, "max_length": 64, "val_size": 0, **data},
            "output_dir": "run",
        }
        config = parse_config(raw, origin="test")
        return config, prepare(config)

    return make


def test_both_texts_share_a_row_and_only_answers_are_trained(make_store: MakeStore, tiny_tokenizer_dir: Path) -> None:
    _, store = make_store([{"prompt": "q", "chosen": "yes it is", "rejected": "no"}])
    samples, tokenizer = store.train(0), load_tokenizer(str(tiny_tokenizer_dir))
    sample = samples.sample(0)
    prompt = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    texts = [tokenizer.encode(prompt + text + "<|im_end|>") for text in ("yes it is", "no")]
    assert sample.lengths == [len(text) - 1 for text in texts] and samples.lengths.tolist() == [sum(sample.lengths)]
    assert sample.input_ids.tolist() == texts[0][:-1] + texts[1][:-1]
    trained = [token for token in sample.targets.tolist() if token >= 0]
    assert tokenizer.decode(trained) == "yes it is<|im_end|>no<|im_end|>"
    assert samples.trained_tokens.tolist() == [len(tokenizer.encode("yes it is<|im_end|>"))]


def test_a_batch_names_both_texts_of_a_pair_and_restarts_their_positions(make_store: MakeStore) -> None:
    records = [{"prompt": f"q{n}", "chosen": "yes " * (n + 1), "rejected": "no"} for n in range(6)]
    config, store = make_store(records, max_length=128)
    step = TrainLoader(store, config).step(0)
    (batch,) = step.micro_batches
    starts = int(((batch.position_ids == 0) & (batch.task_ids >= 0)).sum())
    assert starts == len(batch.samples) == 2 * int(step.counts.samples[0])
    assert torch_pairs(batch.samples[:, 1].tolist())
    assert step.counts.units.tolist() == step.counts.samples.tolist()


def torch_pairs(indices: list[int]) -> bool:
    return indices[::2] == indices[1::2]


LONG = {"prompt": "q", "chosen": "yes " * 60, "rejected": "no"}


def test_a_pair_longer_than_a_row_is_cut_where_it_is_long_or_dropped(make_store: MakeStore) -> None:
    _, store = make_store([LONG, {"prompt": "q", "chosen": "a", "rejected": "b"}])
    first = store.train(0).sample(0)
    assert sum(first.lengths) == 64 and first.lengths[1] < 20 and store.statistics[0].truncated == 1
    for over_length in ("drop", "split"):
        _, store = make_store([LONG, {"prompt": "q", "chosen": "a", "rejected": "b"}], over_length=over_length)
        assert (store.statistics[0].samples, store.statistics[0].dropped) == (1, 1)


def test_a_pair_that_differs_beyond_the_cut_only_is_dropped(make_store: MakeStore) -> None:
    late = {"prompt": "q", "chosen": "yes " * 60 + "a", "rejected": "yes " * 60 + "b"}
    _, store = make_store([late, {"prompt": "q", "chosen": "a", "rejected": "b"}])
    assert (store.statistics[0].samples, store.statistics[0].dropped, store.statistics[0].truncated) == (1, 1, 0)


def test_the_longest_text_is_one_side_of_a_pair(make_store: MakeStore) -> None:
    _, store = make_store([LONG])
    assert store.longest_text() == (store.train(0).sample(0).lengths[0], "prefs")
    _, store = make_store([{**LONG, "chosen": "no", "rejected": "yes " * 60}])
    assert store.longest_text() == (store.train(0).sample(0).lengths[1], "prefs")


def test_a_prompt_longer_than_its_part_of_the_row_is_an_error_with_its_line(make_store: MakeStore) -> None:
    records = [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "why " * 60, "chosen": "a", "rejected": "b"}]
    with pytest.raises(DataError, match=r"prefs.jsonl:2: its prompt has \d+ tokens, and each .* room for 32. Raise"):
        make_store(records)
    _, store = make_store(records, on_error="skip")
    assert (store.statistics[0].samples, store.statistics[0].skipped, store.statistics[0].records) == (1, 1, 1)


def test_a_labelled_answer_is_followed_by_the_answer_to_another_prompt(
    make_store: MakeStore, tiny_tokenizer_dir: Path
) -> None:
    records = [{"prompt": f"q{n}", "completion": f"answer {n}", "label": n == 1} for n in range(3)]
    _, store = make_store(records, "kto", max_length=128)
    samples, tokenizer = store.train(0), load_tokenizer(str(tiny_tokenizer_dir))
    assert samples.desirable.tolist() == [False, True, False]
    for index, other in enumerate((2, 0, 1)):
        sample = samples.sample(index)
        text = tokenizer.decode(sample.input_ids[sample.lengths[0] :].tolist())
        assert f"q{index}" in text and f"answer {other}" in text


def test_a_labelled_record_in_a_task_of_pairs_is_refused(make_store: MakeStore) -> None:
    with pytest.raises(DataError, match="'chosen' is missing"):
        make_store([{"prompt": "q", "completion": "a", "label": True}])


def test_a_labelled_answer_alone_stands_for_the_answer_to_another_prompt(make_store: MakeStore) -> None:
    """Then z is its own S - R, if that is above 0."""
    _, store = make_store([{"prompt": "q", "completion": "a", "label": True}], "kto")
    sample = store.train(0).sample(0)
    first, second = sample.input_ids[: sample.second].tolist(), sample.input_ids[sample.second :].tolist()
    assert first == second
