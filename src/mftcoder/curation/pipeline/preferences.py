"""Preference records: of the answers to one question, pairs of one that passes and one that fails.

    {"chosen": [turns], "rejected": [turns]}     in the roles of chat_rounds, equal but for the last bot turn

Answers are records with the same question, and the further answers of a record. Only an answer whose result was compared with an
expected one counts as passing.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mftcoder.cache import content_hash as file_hash
from mftcoder.curation.example import Example
from mftcoder.curation.pipeline.blocks import kept_path, numbered_lines
from mftcoder.curation.pipeline.run import BlockFiles
from mftcoder.curation.pipeline.verify import answers_of, read_verdicts
from mftcoder.curation.verification.config import VerifyConfig
from mftcoder.curation.verification.verdict import Verdict
from mftcoder.data.records.conversation import Message, content_hash
from mftcoder.errors import DataError
from mftcoder.jsonl import read_jsonl, write_jsonl

_ROLES = {"system": "system", "user": "human", "assistant": "bot"}


@dataclass
class _Question:
    """The answers to one question: how many are still to come, and the texts that pass or fail, each once."""

    left: int = 0
    passing: dict[str, None] = field(default_factory=dict)
    failing: dict[str, None] = field(default_factory=dict)


class Preferences:
    """The files of pairs that a curation writes, noted in `written`."""

    def __init__(self, written: list[dict[str, Any]]):
        self.written = written

    def write(self, blocks: Sequence[BlockFiles], config: VerifyConfig) -> None:
        """Write the pairs of judged blocks, and note where they are, how many, and the file's checksum."""
        if config.preferences:
            path = Path(config.preferences).expanduser()
            count = write_jsonl(path, _pairs(blocks, config))
            self.written.append({"path": str(path), "records": count, "sha256": file_hash(path)})


def refuse_to_overwrite(path: Path, inputs: Sequence[Path], output: Path) -> None:
    """DataError if the file would replace something else than pairs, or lie in the folder that is replaced as a whole."""
    if path.resolve() in {file.resolve() for file in inputs}:
        raise DataError(f"{path}: is an input. Choose another file for the preferences")
    if path.resolve().is_relative_to(output.resolve()):
        raise DataError(f"{path}: lies in the output directory, which is replaced as a whole. Choose another place")
    if path.suffix != ".jsonl":
        raise DataError(f"{path}: the name of a file of preferences ends in .jsonl")
    if path.exists():
        for number, record in read_jsonl(path):
            if not isinstance(record, dict) or record.keys() != {"chosen", "rejected"}:
                raise DataError(
                    f"{path}:{number}: is no pair of answers, and would be overwritten. Choose another file"
                )


def _pairs(blocks: Sequence[BlockFiles], config: VerifyConfig) -> Iterator[dict[str, Any]]:
    """The pairs of each question, when its last answer is reached: only questions that are under way take memory."""
    questions: dict[int, _Question] = {}
    for key, _, _ in _answers(blocks, config):
        questions.setdefault(key, _Question()).left += 1
    for key, example, verdict in _answers(blocks, config):
        question = questions[key]
        question.left -= 1
        messages = example.conversation.messages
        if verdict.is_proof and verdict.outcome == "passed":
            question.passing[messages[-1].content] = None
        elif verdict.outcome == "failed":
            question.failing[messages[-1].content] = None
        if not question.left:
            failing = [text for text in question.failing if text not in question.passing]
            for chosen, rejected in zip(question.passing, failing, strict=False):
                yield {"chosen": _turns(messages, chosen), "rejected": _turns(messages, rejected)}
            del questions[key]


def _answers(blocks: Sequence[BlockFiles], config: VerifyConfig) -> Iterator[tuple[int, Example, Verdict]]:
    """The question's hash, the record with this answer, and its verdict; records whose last turn is not an answer are left out."""
    for block in blocks:
        lines = numbered_lines(kept_path(block.target))
        for (_, line), (_, verdicts) in zip(lines, read_verdicts(block), strict=True):
            for example, verdict in zip(answers_of(block, line, config), verdicts, strict=True):
                *asked, last = example.conversation.messages
                if last.role == "assistant":
                    yield content_hash(asked), example, verdict


def _turns(messages: Sequence[Message], answer: str) -> list[Mapping[str, str]]:
    asked = [{"role": _ROLES[message.role], "content": message.content} for message in messages[:-1]]
    return [*asked, {"role": "bot", "content": answer}]
