"""Exercises on topics, in the six steps of CodeExercise-Python-27k (https://huggingface.co/datasets/codefuse-ai/CodeExercise-Python-27k):
topics, a fixed request for each, a model that sharpens it, questions, answers, and no two alike. The last step is output.py's.
"""

from dataclasses import dataclass

from mftcoder.curation.synthesis.config import ExercisesConfig
from mftcoder.curation.synthesis.prompts import Prompts
from mftcoder.curation.synthesis.sources import Topic
from mftcoder.curation.synthesis.work import Collected, Draft, DroppedError, ask, reply_of, tagged
from mftcoder.curation.teacher.teacher import Teacher, in_order

TASK = "exercises"


@dataclass(frozen=True)
class _Item:
    """One request for exercises: its topic, and which of the topic's requests it is."""

    topic: Topic
    variant: int


class Exercises:
    """The method. `sharpener` may be the same model as `teacher`."""

    steps: tuple[str, ...] = ("sharpen", "questions", "answer")

    def __init__(
        self, config: ExercisesConfig, topics: list[Topic], prompts: Prompts, teacher: Teacher, sharpener: Teacher
    ):
        self.config, self.prompts, self.teacher, self.sharpener = config, prompts, teacher, sharpener
        self.items = [_Item(topic, variant) for variant in range(config.variants) for topic in topics]

    async def make(self, number: int, collected: Collected) -> None:
        """The exercises of one request."""
        item = self.items[number]
        with collected.dropping((number,), TASK, item.topic.origin):
            request = await self._sharpened(item)
            await self._answers(number, request, await self._questions(item, request), collected)

    async def _answers(self, number: int, request: str, questions: list[str], collected: Collected) -> None:
        item = self.items[number]
        if len(questions) < self.config.exercises:
            short = DroppedError("questions", "too_few", len(questions), wanted=self.config.exercises)
            collected.drop((number,), TASK, short, item.topic.origin)
        facts = {"method": TASK, "topic": item.topic.text, "request": request, "model": self.teacher.config.model}

        async def answer(place: int) -> None:
            prompt = self.prompts.render("answer", question=questions[place], language=self.config.language)
            with collected.dropping((number, place), TASK, item.topic.origin):
                text = await ask(self.teacher, "answer", prompt)
                collected.keep((number, place), Draft(TASK, questions[place], text, item.topic.origin, facts))

        _, stop = await in_order(answer, range(len(questions)), width=self.teacher.config.concurrency)
        if stop is not None:
            raise stop

    async def _sharpened(self, item: _Item) -> str:
        language = self.config.language
        task = self.prompts.render("task", topic=item.topic.text, language=language)
        prompt = self.prompts.render("sharpen", task=task, language=language)
        return await ask(self.sharpener, "sharpen", prompt, sample=item.variant)

    async def _questions(self, item: _Item, request: str) -> list[str]:
        """The questions. The last one is left out where the reply was cut."""
        count = self.config.exercises
        prompt = self.prompts.render("questions", task=request, count=count, language=self.config.language)
        reply = await reply_of(self.teacher, "questions", prompt, sample=item.variant)
        questions = tagged(reply.text, "exercise", is_cut=reply.is_cut)
        if not questions and count == 1 and not reply.is_cut:
            questions = [reply.text.strip()]
        if not questions:
            raise DroppedError("questions", "cut" if reply.is_cut else "no_exercise", reply.text[:200])
        return questions
