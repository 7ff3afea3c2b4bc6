"""Ask a model behind an endpoint many questions: several at a time, at its pace, again where an attempt fails, never twice for an answer.

Answers come from the journal if they are in it. The budget is held before each attempt. What the answers are used for is others' work.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

import xxhash

from mftcoder.curation.teacher.budget import Budget, OverBudgetError, Spent, cost_of, most_of
from mftcoder.curation.teacher.endpoint import (
    AttemptError,
    Endpoint,
    EndpointConfig,
    Messages,
    RefusedError,
    Reply,
    Usage,
)
from mftcoder.curation.teacher.journal import RequestJournal, request_key
from mftcoder.errors import EndpointError

LONGEST_BACKOFF = 60.0
FAILURES_IN_A_ROW = 3
"""Requests that bring no answer although each was tried again, after which the endpoint counts as dead; at least `concurrency`."""

Item = TypeVar("Item")
Made = TypeVar("Made")


class UnansweredError(Exception):
    """A request that brought no answer. `problem` is what the last attempt said."""

    def __init__(self, problem: str):
        super().__init__(problem)
        self.problem = problem


class _Pace:
    """When the next request may start: the rate limit of the config, and pauses that the endpoint asked for."""

    def __init__(self, requests_per_minute: float | None):
        self._interval = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        """Wait for a place."""
        while (now := time.monotonic()) < self._next:
            await asyncio.sleep(self._next - now)
        self._next = time.monotonic() + self._interval

    def pause(self, seconds: float) -> None:
        """No request of anyone starts before this many seconds have passed."""
        self._next = max(self._next, time.monotonic() + seconds)


class Teacher:
    """A model that is asked. `seed` is the seed of the run: another one asks for other answers to the same questions."""

    def __init__(self, endpoint: Endpoint, journal: RequestJournal, budget: Budget, *, seed: int):
        self.config, self.journal, self.budget, self.seed = endpoint.config, journal, budget, seed
        self._endpoint = endpoint
        self._pace = _Pace(self.config.requests_per_minute)
        self._places = asyncio.Semaphore(self.config.concurrency)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._failures_in_a_row = 0
        self._stopped: EndpointError | None = None
        self._jitter = random.Random(seed)  # shapes waits only, never a result

    async def ask(self, messages: Messages | str, *, sample: int = 0) -> Reply:
        """The answer to these messages; a text is one message of the user. `sample` numbers several answers to the same question.

        UnansweredError if the endpoint gives none to this request, EndpointError if it will not give any, OverBudgetError.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        body = self.config.body(messages)
        key = request_key(body, self.seed, sample)
        async with self._locks.setdefault(key, asyncio.Lock()):  # two records may ask the same
            known = self.journal.reply(key)
            try:
                return known if known is not None else await self._answer(key, body, messages)
            except EndpointError as error:
                self._stopped = error
                raise

    async def _answer(self, key: str, body: dict, messages: Messages) -> Reply:
        failed: list[AttemptError] = []
        reply: Reply | None = None
        started = time.monotonic()
        try:
            while reply is None and len(failed) <= self.config.retries:
                if failed:
                    await self._back_off(failed)
                try:
                    answered = await self._attempt(key, body, messages, len(failed))
                except RefusedError as error:
                    failed.append(error)
                    break
                except AttemptError as error:
                    failed.append(error)
                except EndpointError as error:
                    failed.append(AttemptError(str(error)))
                    raise
                else:
                    reply = self._accepted(answered, failed)
        finally:
            if reply is not None or failed:
                self.journal.add(key, body, reply, failed, time.monotonic() - started)
        if reply is None:
            self._count_failure(failed[-1])
            raise UnansweredError(failed[-1].problem)
        self._failures_in_a_row = 0
        return reply

    async def _attempt(self, key: str, body: dict, messages: Messages, number: int) -> Reply:
        seeded = {**body, "seed": _seed_of(key, number)} if "seed" not in self.config.extra_body else body
        async with self._places, self.budget.reserved(most_of(self.config, messages)):
            await self._pace.wait()
            if self._stopped is not None:  # while this request waited for its turn
                raise self._stopped
            usage: Usage | None = None
            try:
                reply = await self._endpoint.chat(seeded)
                usage = reply.usage
            except AttemptError as error:
                usage = error.usage
                raise
            finally:
                self.budget.spent += Spent(1, usage or Usage(), cost_of(self.config, usage or Usage()))
        return reply

    def _accepted(self, reply: Reply, failed: list[AttemptError]) -> Reply:
        """The answer; one that stops the command counts as a failed attempt."""
        problem = self._problem_with(reply)
        if problem:
            failed.append(AttemptError(problem, usage=reply.usage))
            raise EndpointError(f"{self.config.url}: {problem}")
        return reply

    def _problem_with(self, reply: Reply) -> str:
        limits, known = self.budget.config, self.journal.models.get(self.config.model)
        if reply.usage is None and (limits.tokens or limits.cost):
            return "answers without `usage`, so a budget of tokens or cost cannot be held. Use a budget of requests"
        if known and reply.model not in known and not self.config.allow_model_change:
            return (
                f"answers as model '{reply.model}', but answered as '{next(iter(known))}' before. The answers so far are kept. "
                "Choose another output, or set allow_model_change"
            )
        return ""

    async def _back_off(self, failed: Sequence[AttemptError]) -> None:
        asked = failed[-1].retry_after
        if asked is not None and asked > self.config.patience_seconds:
            raise EndpointError(
                f"{self.config.url}: {failed[-1].problem}; asks to wait {asked:,.0f} s, more than patience_seconds. The answers so "
                "far are kept: type the same command again then"
            )
        backoff = min(LONGEST_BACKOFF, self.config.backoff_seconds * 2 ** (len(failed) - 1))
        if asked is not None:
            self._pace.pause(asked)
        else:
            await asyncio.sleep(backoff * self._jitter.uniform(0.5, 1))

    def _count_failure(self, last: AttemptError) -> None:
        self._failures_in_a_row += 1
        most = max(FAILURES_IN_A_ROW, self.config.concurrency)
        if self._failures_in_a_row >= most:
            raise EndpointError(
                f"{self.config.url}: {most} requests in a row brought no answer, the last one: {last.problem}. The answers so far are "
                "kept: type the same command again when it answers"
            )


def _seed_of(key: str, attempt: int) -> int:
    """The seed that is sent: of the request, and another one for each attempt, because an empty answer would come back empty."""
    return xxhash.xxh32_intdigest(f"{key}:{attempt}".encode()) >> 1


def spent_so_far(journal: RequestJournal, endpoints: Sequence[EndpointConfig]) -> Spent:
    """What earlier runs into the same output used, at today's prices."""
    spent = Spent()
    by_model = {endpoint.model: endpoint for endpoint in endpoints}
    for model, totals in journal.totals.items():
        cost = cost_of(by_model[model], totals.usage) if model in by_model else 0.0
        spent += Spent(totals.attempts, totals.usage, cost)
    return spent


async def in_order(
    make: Callable[[Item], Awaitable[Made]],
    items: Sequence[Item],
    *,
    width: int,
    on_done: Callable[[int], None] = lambda done: None,
) -> tuple[list[Made | None], OverBudgetError | None]:
    """`make` of each item, `width` at a time, in the order of the items whichever is ready first.

    When the budget is spent, those that have begun end or run out of budget too, and the rest is None. An EndpointError is raised
    after the requests under way are answered: they are paid.
    """
    results: list[Made | None] = [None] * len(items)
    waiting = iter(range(len(items)))
    stops: list[EndpointError | OverBudgetError] = []
    done = 0

    async def work() -> None:
        nonlocal done
        for index in waiting:
            if stops:
                return
            try:
                results[index] = await make(items[index])
            except (EndpointError, OverBudgetError) as stop:
                stops.append(stop)
                return
            done += 1
            on_done(done)

    await asyncio.gather(*(work() for _ in range(min(width, len(items)))))
    for stop in stops:
        if isinstance(stop, EndpointError):
            raise stop
    return results, next((stop for stop in stops if isinstance(stop, OverBudgetError)), None)
