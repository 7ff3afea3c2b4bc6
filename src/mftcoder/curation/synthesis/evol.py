"""Harder questions from given ones, round by round: Evol-Instruct (Xu et al., arXiv 2304.12244), with the five ways for code of
WizardCoder (Luo et al., arXiv 2306.08568), and rules that eliminate a version which did not become harder.
"""

import random

import numpy as np

from mftcoder.curation.duplicates.choice import jaccard
from mftcoder.curation.duplicates.ngrams import core_words, ngram_hashes
from mftcoder.curation.example import Example
from mftcoder.curation.synthesis.config import EvolConfig
from mftcoder.curation.synthesis.prompts import WAYS, Prompts
from mftcoder.curation.synthesis.work import Collected, Draft, DroppedError, ask
from mftcoder.curation.teacher.teacher import Teacher

TASK = "evol"
_SHORT_ANSWER = 80  # words; a shorter one that says sorry is no answer


class Evol:
    """The method: an item is a record, whose question goes through all rounds."""

    steps: tuple[str, ...] = ("read", "rewrite", "eliminate", "answer")

    def __init__(self, config: EvolConfig, records: list[Example], prompts: Prompts, teacher: Teacher, seed: int):
        self.config, self.prompts, self.teacher, self.seed = config, prompts, teacher, seed
        self.items = records

    async def make(self, number: int, collected: Collected) -> None:
        """The versions of one question. A version that is eliminated is forgotten: the next round starts from the one before."""
        record = self.items[number]
        question, origin = record.question, record.conversation.origin
        if not question.strip():
            collected.drop((number, 0), TASK, DroppedError("read", "no_question", "plain text"), origin)
            return
        for turn, way in enumerate(self._ways(question)):
            facts = {"method": TASK, "way": way, "round": turn + 1, "model": self.teacher.config.model}
            with collected.dropping((number, turn), TASK, origin):
                harder = await self._harder(question, way)
                answer = await self._answer(harder)
                collected.keep((number, turn), Draft(TASK, harder, answer, origin, facts))
                question = harder

    def _ways(self, question: str) -> list[str]:
        """A way for each round: all five in a random order, then again."""
        generator = random.Random(f"{self.seed}:{question}")
        return [way for _ in range(-(-self.config.rounds // len(WAYS))) for way in generator.sample(WAYS, len(WAYS))][
            : self.config.rounds
        ]

    async def _harder(self, question: str, way: str) -> str:
        """The next version; DroppedError if it is eliminated."""
        way_text = self.prompts.render(way, question=question)
        prompt = self.prompts.render("rewrite", way=way_text, question=question)
        harder = await ask(self.teacher, "rewrite", prompt)
        alike = _alike(question, harder)
        if alike >= self.config.most_alike:
            raise DroppedError("eliminate", "unchanged", round(alike, 4), way=way)
        phrase = next((phrase for phrase in self.config.prompt_words if phrase.lower() in harder.lower()), None)
        if phrase is not None:
            raise DroppedError("eliminate", "speaks_of_prompt", phrase, way=way)
        if self.config.judge:
            await self._judge(question, harder, way)
        return harder

    async def _judge(self, question: str, harder: str, way: str) -> None:
        verdict = await ask(self.teacher, "eliminate", self.prompts.render("judge", first=question, second=harder))
        word = verdict.strip(" \n\t.*\"'`").lower()[:3].strip(" ,.")
        if word != "yes":
            raise DroppedError("eliminate", "not_harder" if word == "no" else "no_verdict", verdict[:200], way=way)

    async def _answer(self, question: str) -> str:
        answer = await ask(self.teacher, "answer", self.prompts.render("answer", question=question))
        if not core_words(answer):
            raise DroppedError("answer", "no_content", answer[:200])
        if "sorry" in answer.lower() and len(answer.split()) < _SHORT_ANSWER:
            raise DroppedError("answer", "sorry", answer[:200])
        return answer


def _alike(one: str, other: str) -> float:
    """Share of word pairs that two texts have in common; 1 for texts that differ in whitespace only."""
    return jaccard(*map(np.unique, ngram_hashes([one.lower(), other.lower()], 2)))
