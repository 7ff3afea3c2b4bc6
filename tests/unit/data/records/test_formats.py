import json
from typing import Any

import pytest

from mftcoder.data.records.conversation import Message
from mftcoder.data.records.formats import FIELDS, PAIRS, detect, parse_object, read_record
from mftcoder.errors import DataError
from mftcoder.registry import FORMATS

SYSTEM, USER = Message("system", "Be brief.", False), Message("user", "1 + 1?", False)
ANSWER, UNTRAINED = Message("assistant", "2", True), Message("assistant", "2", False)

EXAMPLES: dict[str, list[tuple[dict[str, Any], list[Message]]]] = {
    "chat_rounds": [
        ({"chat_rounds": [{"role": "human", "content": "1 + 1?"}, {"role": "bot", "content": "2"}], "system": "Be brief."}, [SYSTEM, USER, ANSWER]),
        (
            {"chat_rounds": [{"role": "human", "content": "1 + 1?"}, {"role": "bot", "content": "2"}], "data_name": "sums"},
            [USER, ANSWER],
        ),
        (
            {
                "chat_rounds": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "1 + 1?"},
                    {"role": "gpt", "content": "2"},
                ]
            },
            [SYSTEM, USER, ANSWER],
        ),
    ],
    "messages": [
        ({"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}], "system": "Be brief."}, [SYSTEM, USER, ANSWER]),
        (
            {"messages": [
                {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2", "train": False},
                {"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"},
            ]},
            [USER, UNTRAINED, USER, ANSWER],
        ),
        (
            {"messages": [{"role": "developer", "content": "Be brief."}, {"role": "assistant", "content": "2"}]},
            [SYSTEM, ANSWER],
        ),
    ],
    "sharegpt": [
        ({"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]}, [USER, ANSWER]),
        (
            {"system": "Be brief.", "conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]},
            [SYSTEM, USER, ANSWER],
        ),
    ],
    "alpaca": [
        ({"instruction": "1 + 1?", "output": "2"}, [USER, ANSWER]),
        (
            {"instruction": "Add.", "input": "1 and 1", "output": "2"},
            [Message("user", "Add.\n\n1 and 1", False), ANSWER],
        ),
    ],
    "prompt_completion": [
        ({"prompt": "1 + 1?", "completion": "2"}, [USER, ANSWER]),
        ({"prompt": "1 + 1?", "completion": "2", "system": "Be brief."}, [SYSTEM, USER, ANSWER]),
        *(({question: "1 + 1?", answer: "2"}, [USER, ANSWER]) for question, answer in PAIRS),
    ],
    "text": [
        ({"text": "def f(): pass"}, [Message("text", "def f(): pass", True)]),
        ({"text": " x\n", "id": 3}, [Message("text", " x\n", True)]),
    ],
}  # fmt: skip


def read(record: Any, format: str = "auto") -> tuple[Message, ...]:
    line = record if isinstance(record, bytes) else json.dumps(record).encode()
    return read_record(line, format=format, task="sums", origin="x.jsonl:1").messages


@pytest.mark.parametrize("name", EXAMPLES)
def test_two_lines_of_a_dialect_give_the_expected_messages(name: str) -> None:
    for record, expected in EXAMPLES[name]:
        assert detect(record) == name
        assert list(read(record)) == list(read(record, name)) == expected


def test_every_registered_dialect_is_detected_and_has_an_example() -> None:
    assert set(EXAMPLES) == {name for name, _ in FIELDS} == set(FORMATS.names())


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"chat_rounds": [{"role": "human", "content": "a"}, {"role": "robot", "content": "b"}]},
         "message 2: role 'robot' is unknown. Known roles: system, human/user, bot/assistant."),
        ({"chat_rounds": [{"role": "human"}, {"role": "bot", "content": "b"}]}, "message 1: 'content' is missing"),
        ({"chat_rounds": [{"role": "bot", "content": 7}]}, "message 1: 'content' is a number, not a text"),
        ({"chat_rounds": [{"role": "bot", "content": None}]}, "message 1: 'content' is null, not a text"),
        ({"chat_rounds": [{"role": "human", "content": "a"}]}, "it has no assistant message: nothing to train on"),
        ({"chat_rounds": []}, "it has no message"),
        ({"chat_rounds": "hello"}, "'chat_rounds' is a text, not a list"),
        ({"chat_rounds": ["hello"]}, "message 1: is a text, not an object with 'role' and 'content'"),
        ({"messages": [{"role": "assistant", "content": "b", "train": 1}]}, "message 1: 'train' is a number, not true or false"),
        ({"messages": [{"role": "user", "content": "b", "train": True}, {"role": "assistant", "content": "c"}]},
         "message 1: only assistant messages can be trained, not one of role 'user'"),
        ({"conversations": [{"from": ["gpt"], "value": "b"}]}, "message 1: 'from' is a list, not a text"),
        ({"instruction": "a", "output": " "}, "'output' is empty"),
        ({"instruction": "a", "output": "b", "input": 3}, "'input' is a number, not a text"),
        ({"query": "a", "reply": "b"}, "unknown dialect: the record has the fields 'query', 'reply'."),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "unknown dialect: a pair of chosen and rejected is for kind: dpo"),
        ([1], "a record is a JSON object, not a list"),
        (b'{"text": "a", "text": "b"}', "key 'text' appears twice. Keep one of them."),
        (b'{"chat_rounds": [{"role": "bot", "content": "a", "content": ": b"}]}', "key 'content' appears twice."),
        (b'{"a\\\\": 1, "a\\\\": 2, "text": ": x"}', "key 'a\\' appears twice."),
        (b'{"text": "abc', "not valid JSON:"),
        (b'{"text": "\xff"}', "not valid JSON: byte 11 is not UTF-8. Save the file as UTF-8."),
        (b'{"text": "\\ud800"}', "not valid JSON:"),
        (b'{"text": NaN}', "not valid JSON:"),
        (b"[" * 5000, "not valid JSON:"),
    ],
)  # fmt: skip
def test_a_bad_record_is_refused_with_a_sentence(record: Any, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read(record)
    assert any(line.startswith(problem) for line in caught.value.problems), caught.value.problems


def test_all_problems_of_a_record_are_reported_together() -> None:
    with pytest.raises(DataError) as caught:
        read({"chat_rounds": [{"role": "robot", "content": 1}, {}]})
    assert len(caught.value.problems) == 4


def test_text_that_looks_like_keys_is_not_a_doubled_key() -> None:
    record = {"text": 'x = {"a": 1, "a": 2}\n"a" : ":"', "meta": {"text": ": "}}
    assert parse_object(json.dumps(record).encode()) == record
