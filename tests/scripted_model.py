"""A model that gives the answers that a test has told it."""

from typing import Any

from mftcoder.curation.teacher.endpoint import Reply


class Says:
    """One answer after the other; the last one again and again."""

    def __init__(self) -> None:
        self.answers: list[str] = []

    def ask(self, messages: Any, *, seed: int = 0) -> Reply:
        """The next answer."""
        return Reply(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0], "stop", "told", None)

    def go_on(self, before: str, after: str, *, stop: Any, max_tokens: int) -> None:
        """It completes nothing."""
