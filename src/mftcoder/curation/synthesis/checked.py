"""Two methods that believe no model: tests are kept if code passes them and buggy code fails, repaired code if it passes its tests."""

from collections import Counter
from typing import Any

from mftcoder.curation.example import Example, fenced, parse_python
from mftcoder.curation.synthesis.config import RepairConfig, TestsConfig
from mftcoder.curation.synthesis.prompts import Prompts
from mftcoder.curation.synthesis.trials import (
    Trials,
    joined_tests,
    mutants,
    passes,
    python_of,
    signatures,
    single_tests,
    tests_in,
    usable_tests,
)
from mftcoder.curation.synthesis.work import Collected, Draft, DroppedError, ask
from mftcoder.curation.teacher.teacher import Teacher, in_order
from mftcoder.curation.verification.verdict import Verdict

WRITE_TESTS, TESTED = "write_tests", "tested"
REPAIR, REPAIRED = "repair", "repaired"
_ASK_FOR_TESTS = "Write tests for the following Python code: assert statements that call it."
_ASK_FOR_REPAIR = "The following Python code should answer this question, but its tests fail. Correct it."


class Tests:
    """The method: an item is a record with Python code. It becomes an example of writing tests, and a record with tests."""

    __test__ = False  # pytest would take a class named Test... for a test
    steps: tuple[str, ...] = ("read", "tests", "trial")

    def __init__(self, config: TestsConfig, records: list[Example], prompts: Prompts, teacher: Teacher, trials: Trials):
        self.config, self.prompts, self.teacher, self.trials = config, prompts, teacher, trials
        self.items = records

    async def make(self, number: int, collected: Collected) -> None:
        """The tests of one record."""
        record = self.items[number]
        with collected.dropping((number,), WRITE_TESTS, record.conversation.origin):
            await self._make(record, number, collected)

    async def _make(self, record: Example, number: int, collected: Collected) -> None:
        origin, code = record.conversation.origin, _code_of(record)
        chosen, tests, samples = await self._agreed(record, code, await self._tests(record, code))
        found = await self._proved(chosen, tests)
        facts = {"method": "tests", "model": self.teacher.config.model, **found}
        question = f"{_ASK_FOR_TESTS}\n\n{fenced(chosen)}"
        collected.keep((number, 0), Draft(WRITE_TESTS, question, fenced(tests), origin, facts))
        if record.question.strip():
            answer = record.answer if record.blocks and chosen == code else fenced(chosen)
            fields = {"tests": tests, **({"samples": samples} if samples else {})}
            collected.keep((number, 1), Draft(TESTED, record.question, answer, origin, facts, fields))

    async def _tests(self, record: Example, code: str) -> str:
        prompt = self.prompts.render("tests", question=record.question, code=code, count=self.config.count)
        reply = await ask(self.teacher, "tests", prompt)
        tests = usable_tests(reply, code)
        if not tests:
            raise DroppedError("tests", "no_assert", reply[:200])
        return tests

    async def _agreed(self, record: Example, code: str, tests: str) -> tuple[str, str, list[str]]:
        """The first answer that passes the tests on which more than half of the answers agree, these tests, and the other answers."""
        if not self.config.answers:
            return code, tests, []
        votes = Counter([code, *await self._answers(record, code)])
        answers, singles = list(votes), single_tests(tests)
        kept = []
        for single in singles:
            verdicts = await self.trials.run(answers, single)
            agreeing = sum(votes[one] for one, verdict in zip(answers, verdicts, strict=True) if passes(verdict))
            if 2 * agreeing > 1 + self.config.answers:
                kept.append(single)
        if not kept:
            raise DroppedError("trial", "no_agreement", f"{len(answers)} answers, {len(singles)} tests")
        right = [passes(verdict) for verdict in await self.trials.run(answers, joined_tests(tests, kept))]
        chosen = next((one for one, is_right in zip(answers, right, strict=True) if is_right), None)
        if chosen is None:
            raise DroppedError("trial", "no_answer_passes", f"{len(answers)} answers, {len(kept)} tests")
        return chosen, joined_tests(tests, kept), [fenced(one) for one in answers if one != chosen]

    async def _answers(self, record: Example, code: str) -> list[str]:
        """Further answers; one that the endpoint does not give, or without Python, passes no test."""
        prompt = self.prompts.render("answer", question=record.question, names=signatures(code))

        async def one(sample: int) -> str:
            try:
                return python_of(await ask(self.teacher, "answer", prompt, sample=sample))
            except DroppedError:
                return ""

        found, stop = await in_order(one, range(self.config.answers), width=self.config.answers)
        if stop is not None:
            raise stop
        return [answer for answer in found if answer and parse_python(answer) is not None]

    async def _proved(self, code: str, tests: str) -> dict[str, int]:
        """How many of how many bugs the tests find; DroppedError if the code fails, or if no bug is found."""
        buggy = mutants(code, self.config.mutants, code)
        if not buggy:
            raise DroppedError("trial", "no_bug_fits", "no function to put a bug into")
        verdict, *others = await self.trials.run([code, *buggy], tests)
        if not passes(verdict):
            raise DroppedError("trial", "code_does_not_pass", _said(verdict))
        found = sum(other.outcome == "failed" for other in others)
        if not found:
            raise DroppedError("trial", "finds_no_bug", len(others))
        return {"bugs": len(others), "bugs_found": found}


class Repair:
    """The method: an item is a record with tests. Each step from failing to passing code becomes an example."""

    steps: tuple[str, ...] = ("read", "answer", "repair", "trial")

    def __init__(
        self, config: RepairConfig, records: list[Example], prompts: Prompts, teacher: Teacher, trials: Trials
    ):
        self.config, self.prompts, self.teacher, self.trials = config, prompts, teacher, trials
        self.items = records

    async def make(self, number: int, collected: Collected) -> None:
        """Repair one answer, in several rounds if needed."""
        record = self.items[number]
        with collected.dropping((number, self.config.rounds), REPAIR, record.conversation.origin):
            await self._repair(record, number, collected)

    async def _repair(self, record: Example, number: int, collected: Collected) -> None:
        tests, entry_point = tests_in(record)
        if not tests or not record.question.strip():
            raise DroppedError("read", "no_tests" if record.question.strip() else "no_question", record.question[:200])
        origin = record.conversation.origin
        code = await self._first_answer(record)
        verdict = await self._verdict(code, tests, entry_point)
        facts = {"method": "repair", "model": self.teacher.config.model}
        if passes(verdict):
            if not self.config.answer:
                raise DroppedError("trial", "passes_already", verdict.name)
            collected.keep((number, 0), self._answered(record, code, [], facts))
            return
        failed = [code]
        for turn in range(self.config.rounds):
            values = {"question": record.question, "code": code, "error": _said(verdict), "tests": tests}
            reply = await ask(self.teacher, "repair", self.prompts.render("repair", **values))
            fixed = python_of(reply)
            after = await self._verdict(fixed, tests, entry_point)
            if passes(after):
                asked = f"{_ASK_FOR_REPAIR}\n\n{record.question}\n\n{fenced(code)}\n\nThe tests say: {_said(verdict)}"
                shown = {**facts, "round": turn + 1}
                collected.keep((number, 0), Draft(REPAIR, asked, reply, origin, shown, {"tests": tests}))
                collected.keep((number, 1), self._answered(record, fixed, failed, shown))
                return
            code, verdict = fixed, after
            failed.append(fixed)
        raise DroppedError("trial", "still_fails", _said(verdict))

    def _answered(self, record: Example, code: str, failed: list[str], facts: dict[str, Any]) -> Draft:
        """The question with the answer that passes. `samples` holds those that failed: `mft data verify` makes preference pairs of them."""
        tests, entry_point = tests_in(record)
        fields = {"tests": tests, "entry_point": entry_point, "samples": [fenced(one) for one in failed]}
        origin, given = record.conversation.origin, {name: value for name, value in fields.items() if value}
        return Draft(REPAIRED, record.question, fenced(code), origin, facts, given)

    async def _first_answer(self, record: Example) -> str:
        if not self.config.answer:
            return _code_of(record, must_parse=False)
        return python_of(await ask(self.teacher, "answer", self.prompts.render("answer", question=record.question)))

    async def _verdict(self, code: str, tests: str, entry_point: str) -> Verdict:
        if not code.strip():
            return Verdict.failed("compile", "there is no Python code in the answer")
        [verdict] = await self.trials.run([code], tests, entry_point)
        if verdict.outcome == "not_run" or (verdict.outcome == "passed" and not passes(verdict)):
            raise DroppedError("trial", "not_run", verdict.why or verdict.detail)
        return verdict


def _code_of(record: Example, *, must_parse: bool = True) -> str:
    """The Python code of a record's answer."""
    code = "\n\n".join(one.rstrip() for one in record.python_codes)
    if not code.strip() or (must_parse and parse_python(code) is None):
        raise DroppedError("read", "no_python", record.answer[:200])
    return code


def _said(verdict: Verdict) -> str:
    """What a verdict says, for a person: `failed tests: AssertionError test_empty`."""
    return f"{verdict.name}: {verdict.detail}" if verdict.detail else verdict.name
