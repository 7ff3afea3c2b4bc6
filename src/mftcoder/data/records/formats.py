"""Records -> conversations, one small function per dialect.

A dialect takes the parsed JSON object and returns its messages. It raises DataError with all problems, without file and line:
the caller adds those. It ignores fields that it does not know. To add a dialect, write one function here (or in your own
package) and one line in `registry.FORMATS`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import orjson

from mftcoder.data.records.conversation import KNOWN_ROLES, ROLES, Conversation, Message, make_conversation
from mftcoder.errors import DataError
from mftcoder.jsonl import unique_keys
from mftcoder.registry import FORMATS

Record = Mapping[str, Any]
Dialect = Callable[[Record], list[Message]]

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "answer"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("instruction", "response"),
    ("input", "output"),
)
"""The field names of a question and its answer in prompt_completion; all but the first come from the published MFTCoder."""
FIELDS = [
    ("chat_rounds", ("chat_rounds",)),
    ("messages", ("messages",)),
    ("sharegpt", ("conversations",)),
    ("alpaca", ("instruction", "output")),
    *(("prompt_completion", pair) for pair in PAIRS),
    ("text", ("text",)),
    ("text", ("content",)),
]
"""The fields by which `auto` knows a dialect, tried in this order."""
_FIELD_SETS = [(name, frozenset(fields)) for name, fields in FIELDS]


def detect(record: Record) -> str:
    """The name of the dialect whose fields the record has; DataError if none fits."""
    for name, fields in _FIELD_SETS:
        if record.keys() >= fields:
            return name
    found = ", ".join(f"'{key}'" for key in list(record)[:6]) or "none"
    wanted = "; ".join(" + ".join(fields) for _, fields in FIELDS)
    if "chosen" in record:
        raise DataError("unknown dialect: a pair of chosen and rejected is for kind: dpo")
    raise DataError(f"unknown dialect: the record has the fields {found}. Known: {wanted}.")


def read_record(line: bytes, *, format: str, task: str, origin: str) -> Conversation:
    """The conversation on one line of JSONL; DataError with one problem a line, without the origin."""
    record = parse_object(line)
    messages = messages_of(record, detect(record) if format == "auto" else format)
    identity = record.get("id", "")
    return make_conversation(messages, id="" if identity is None else str(identity), task=task, origin=origin)


def messages_of(record: Record, dialect: str) -> list[Message]:
    """The messages of a record in this dialect; DataError with all problems."""
    return _dialect(dialect)(record)


@cache
def _dialect(name: str) -> Dialect:
    dialect: Dialect = FORMATS.load(name)
    return dialect


_COLON = re.compile(rb'"\s*:')


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object on a line; DataError if an object has a key twice."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {_reason(line, error)}") from error
    if not isinstance(record, dict):
        raise DataError(f"a record is a JSON object, not {_kind(record)}")
    # Every pair has a quote and a colon. As many of these as keys: no key is doubled. Otherwise the slower parser decides.
    if len(_COLON.findall(line)) != _count_keys(record):
        _refuse_doubled_keys(line)
    return record


def _reason(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as broken:
        return f"byte {broken.start + 1} is not UTF-8. Save the file as UTF-8."
    return str(error)


def _count_keys(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value
    own = len(value) if isinstance(value, dict) else 0
    return own + sum([_count_keys(one) for one in inner if isinstance(one, dict | list)])


def _refuse_doubled_keys(line: bytes) -> None:
    try:
        json.loads(line, object_pairs_hook=unique_keys)
    except RecursionError as error:
        raise DataError("not valid JSON: nested too deeply") from error
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}") from error


def chat_rounds(record: Record) -> list[Message]:
    """`{"chat_rounds": [{"role": "human", "content": ...}, {"role": "bot", "content": ...}]}`: CodeFuse's dialect."""
    return with_system(record, _turns(record, "chat_rounds", role="role", content="content"))


def messages(record: Record) -> list[Message]:
    """`{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ..., "train": false}]}`: OpenAI's dialect."""
    return with_system(record, _turns(record, "messages", role="role", content="content"))


def sharegpt(record: Record) -> list[Message]:
    """`{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}], "system": ...}`."""
    return with_system(record, _turns(record, "conversations", role="from", content="value"))


def alpaca(record: Record) -> list[Message]:
    """`{"instruction": ..., "input": ..., "output": ...}`: the input, if any, follows the instruction after a blank line."""
    instruction, output = _texts(record, "instruction", "output")
    extra = _optional_text(record, "input")
    question = f"{instruction}\n\n{extra}" if extra else instruction
    return with_system(record, [Message("user", question, False), Message("assistant", output, True)])


def prompt_completion(record: Record) -> list[Message]:
    """`{"prompt": ..., "completion": ...}`, or another of PAIRS: one user turn, one assistant turn."""
    pair = next((pair for pair in PAIRS if pair[0] in record and pair[1] in record), PAIRS[0])
    prompt, completion = _texts(record, *pair)
    return with_system(record, [Message("user", prompt, False), Message("assistant", completion, True)])


def text(record: Record) -> list[Message]:
    """`{"text": ...}` or `{"content": ...}`: plain text without a chat template, trained on every token."""
    (content,) = _texts(record, _text_field(record))
    return [Message("text", content, True)]


def plain_text(record: Record) -> str:
    """The text of a record of dialect `text`, which may be blank here."""
    field = _text_field(record)
    if not isinstance(record.get(field), str):
        _texts(record, field)  # says what it is instead
    return str(record[field])


def _text_field(record: Record) -> str:
    return "content" if "content" in record and "text" not in record else "text"


def with_system(record: Record, turns: Sequence[Message]) -> list[Message]:
    """The turns after the record's field `system`, if it has one and they do not begin with the same text."""
    content = _optional_text(record, "system")
    system = [Message("system", content, False)] if content else []
    return list(turns) if list(turns[:1]) == system else [*system, *turns]


def turns(record: Record, field: str) -> list[Message]:
    """The turns in a field, with `role` and `content`, or `from` and `value` in all of them."""
    found = record.get(field)
    other = isinstance(found, list) and found and all(isinstance(turn, dict) and "from" in turn for turn in found)
    return _turns(record, field, role="from" if other else "role", content="value" if other else "content")


def _turns(record: Record, field: str, *, role: str, content: str) -> list[Message]:
    """The messages of a list of turns; DataError lists every problem of every turn."""
    turns = record.get(field)
    if not isinstance(turns, list):
        raise DataError(f"'{field}' is missing" if field not in record else f"'{field}' is {_kind(turns)}, not a list")
    problems = [
        f"message {number}: {problem}"
        for number, turn in enumerate(turns, start=1)
        for problem in _turn_problems(turn, role, content)
    ]
    if problems:
        raise DataError(*problems)
    return [_message(turn, role, content) for turn in turns]


def _turn_problems(turn: Any, role: str, content: str) -> list[str]:
    if not isinstance(turn, dict):
        return [f"is {_kind(turn)}, not an object with '{role}' and '{content}'"]
    problems = []
    if role not in turn:
        problems.append(f"'{role}' is missing")
    elif not isinstance(turn[role], str):
        problems.append(f"'{role}' is {_kind(turn[role])}, not a text")
    elif turn[role] not in ROLES:
        problems.append(f"role '{turn[role]}' is unknown. Known roles: {KNOWN_ROLES}.")
    if content not in turn:
        problems.append(f"'{content}' is missing")
    elif not isinstance(turn[content], str):
        problems.append(f"'{content}' is {_kind(turn[content])}, not a text")
    if not isinstance(turn.get("train", True), bool):
        problems.append(f"'train' is {_kind(turn['train'])}, not true or false")
    return problems


def _message(turn: Mapping[str, Any], role: str, content: str) -> Message:
    known = ROLES[turn[role]]
    return Message(known, turn[content], bool(turn.get("train", known == "assistant")))


def _texts(record: Record, *fields: str) -> list[str]:
    texts = [value for field in fields if isinstance(value := record.get(field), str) and value.strip()]
    if len(texts) == len(fields):
        return texts
    problems = [f"'{field}' is missing" for field in fields if field not in record]
    problems += [
        f"'{field}' is {_kind(record[field])}, not a text"
        for field in fields
        if field in record and not isinstance(record[field], str)
    ]
    problems += [
        f"'{field}' is empty" for field in fields if isinstance(record.get(field), str) and not record[field].strip()
    ]
    raise DataError(*problems)


def _optional_text(record: Record, field: str) -> str:
    value = record.get(field)
    if value is not None and not isinstance(value, str):
        raise DataError(f"'{field}' is {_kind(value)}, not a text")
    return value or ""


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        int: "a number",
        float: "a number",
        bool: "true or false",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
