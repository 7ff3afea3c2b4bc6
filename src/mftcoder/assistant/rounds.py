"""Ask, check, and ask again with the reason of the refusal: the loop of every verb, and what comes out of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mftcoder.assistant.files import SourceFile
from mftcoder.assistant.model import Model, Written
from mftcoder.curation.teacher.endpoint import Messages
from mftcoder.errors import NoAnswerAcceptedError

MOST_QUOTED = 4000
"""Characters of a refused answer that are shown to the model again."""

Made = TypeVar("Made")


class RefusedAnswer(Exception):  # noqa: N818  # the normal end of a bad answer
    """An answer that does not hold what it must. `code` is a word to count by; the text goes to the model and to the user."""

    def __init__(self, code: str, why: str):
        super().__init__(why)
        self.code, self.why = code, why


@dataclass(frozen=True)
class Refusal:
    """A refused answer, in words."""

    code: str
    why: str

    @property
    def line(self) -> str:
        return " ".join(f"{self.code}: {self.why}".split())


@dataclass(frozen=True)
class Proposal:
    """What a verb made of an accepted answer. Nothing of it is written yet."""

    verb: str
    read: SourceFile | None
    """The file as it was read; None for the review of a diff."""
    text: str = ""
    """Prose of explain and review, the inserted text of complete, the tests of test."""
    patch: str = ""
    """What changes in the file, as a unified diff; empty where nothing does."""
    new_text: str | None = None
    """The whole file after the change."""
    tests: str = ""
    """Tests that hold the change, or that were asked for."""
    score: str = ""
    """Of tests: how many mutants fail, in words."""
    notes: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    """Answers that were refused before this one."""

    @property
    def name(self) -> str:
        """The file's name, within the working folder."""
        return self.read.name if self.read else ""


def until_accepted(
    model: Model, messages: Messages, judge: Callable[[Written], Made], *, rounds: int, what: str
) -> tuple[Made, tuple[Refusal, ...]]:
    """What `judge` makes of the first answer that it does not refuse, and the refusals before it.

    NoAnswerAcceptedError after `rounds` refusals.
    """
    refusals: list[Refusal] = []
    asked = list(messages)
    for seed in range(rounds):
        reply = model.ask(asked, seed=seed)
        try:
            return judge(reply), tuple(refusals)
        except RefusedAnswer as refused:
            refusals.append(Refusal(refused.code, refused.why))
            asked = [*messages, *_again(reply, refused)]
    raise NoAnswerAcceptedError(
        *(f"{what}: answer {number}: {one.line}" for number, one in enumerate(refusals, 1)), refusals=refusals
    )


def _again(reply: Written, refused: RefusedAnswer) -> Messages:
    """The refused answer and the reason. An empty answer is not repeated."""
    said = reply.text[:MOST_QUOTED].strip() or "(no answer)"
    return [
        {"role": "assistant", "content": said},
        {"role": "user", "content": f"This answer was not accepted. {refused.why} Write the whole answer again."},
    ]


def conversation(system: str, *parts: str) -> Sequence[dict[str, str]]:
    """A system message and one question."""
    question = "\n\n".join(part.strip("\n") for part in parts if part.strip())
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]
