"""Records of the kind of their task: an answer with a label is not trained as a conversation without it."""

import json
from pathlib import Path

import pytest

from mftcoder.config.data import DataConfig
from mftcoder.config.kinds import SFT
from mftcoder.data.rendering.kinds import Records, records_of
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import DataError


@pytest.fixture
def conversations(tiny_tokenizer_dir: Path) -> Records:
    return records_of(SFT, load_tokenizer(str(tiny_tokenizer_dir)), DataConfig(chat_template="chatml"))


def line(**fields: object) -> bytes:
    return json.dumps({"prompt": "Add.", "completion": "a + b", **fields}).encode()


def test_an_undesirable_answer_is_no_example_to_follow(conversations: Records) -> None:
    with pytest.raises(DataError, match=r"'label' is false: .* Set kind: kto"):
        conversations.read(line(label=False), format="auto", task="t", origin="f:1")


@pytest.mark.parametrize("label", [True, 0, "bad", None])
def test_other_labels_are_fields_that_are_not_read(conversations: Records, label: object) -> None:
    read = [conversations.read(text, format="auto", task="t", origin="f:1") for text in (line(), line(label=label))]
    assert read[0].content_hash == read[1].content_hash
