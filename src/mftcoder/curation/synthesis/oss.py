"""Problems with solutions, inspired by pieces of the user's code: OSS-Instruct (Wei et al., Magicoder, arXiv 2312.02120)."""

from mftcoder.curation.synthesis.prompts import Prompts
from mftcoder.curation.synthesis.sources import Snippet
from mftcoder.curation.synthesis.work import Collected, Draft, DroppedError, reply_of, tagged
from mftcoder.curation.teacher.teacher import Teacher

TASK = "oss"


class OssInstruct:
    """The method: an item is a piece of code."""

    steps: tuple[str, ...] = ("problem",)

    def __init__(self, snippets: list[Snippet], prompts: Prompts, teacher: Teacher):
        self.prompts, self.teacher = prompts, teacher
        self.items = snippets

    async def make(self, number: int, collected: Collected) -> None:
        """The problem of one piece."""
        snippet = self.items[number]
        facts = {"method": TASK, "language": snippet.language, "model": self.teacher.config.model}
        with collected.dropping((number,), TASK, snippet.origin):
            problem, solution = await self._problem(snippet)
            collected.keep((number,), Draft(TASK, problem, solution, snippet.origin, facts))

    async def _problem(self, snippet: Snippet) -> tuple[str, str]:
        prompt = self.prompts.render("problem", snippet=snippet.text, language=snippet.language)
        reply = await reply_of(self.teacher, "problem", prompt)
        if reply.is_cut:
            raise DroppedError("problem", "cut", len(reply.text), finish=reply.finish)
        problems, solutions = tagged(reply.text.split("<solution>")[0], "problem"), tagged(reply.text, "solution")
        if len(problems) != 1 or len(solutions) != 1:
            raise DroppedError("problem", "no_problem_and_solution", reply.text[:200])
        if _spaceless(snippet.text) in _spaceless(reply.text):
            raise DroppedError("problem", "copies_the_code", len(snippet.text))
        return problems[0], solutions[0]


def _spaceless(text: str) -> str:
    return "".join(text.split())
