"""What a synthesis may use in requests, tokens and money. A request starts only if the most that it can use still fits."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mftcoder.config.section import PositiveFloat, PositiveInt, Section
from mftcoder.curation.teacher.endpoint import EndpointConfig, Messages, Usage
from mftcoder.errors import ConfigError

_TEMPLATE_TOKENS = 32
"""Tokens that a chat template puts around a message, at most."""


class BudgetConfig(Section):
    """Limits of all runs into one output together. The command stops before it passes one."""

    requests: PositiveInt | None = None
    """Requests, failed attempts included."""
    tokens: PositiveInt | None = None
    """Tokens of questions and answers."""
    cost: PositiveFloat | None = None
    """Money, in the unit of the endpoints' price_in and price_out."""


@dataclass(frozen=True)
class Spent:
    """What was used, or may be."""

    requests: int = 0
    usage: Usage = field(default_factory=Usage)
    cost: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.requests + other.requests, self.usage + other.usage, self.cost + other.cost)


class OverBudgetError(Exception):
    """The next request does not fit into the budget. The text says which limit, and what is left of it."""


def check_budget(budget: BudgetConfig, endpoints: Sequence[EndpointConfig]) -> None:
    """ConfigError for a limit that cannot be held."""
    problems = []
    if budget.cost is not None and any(end.price_in is None or end.price_out is None for end in endpoints):
        problems.append("budget.cost: needs price_in and price_out of each endpoint")
    if (budget.tokens or budget.cost) and any(end.most_completion_tokens is None for end in endpoints):
        problems.append(
            "budget: extra_body removes max_tokens and sets no max_completion_tokens, so no limit could be held"
        )
    if problems:
        raise ConfigError(*problems)


def cost_of(endpoint: EndpointConfig, usage: Usage) -> float:
    """The price of these tokens; 0 where the endpoint has no price."""
    return (usage.prompt_tokens * (endpoint.price_in or 0) + usage.completion_tokens * (endpoint.price_out or 0)) / 1e6


def most_of(endpoint: EndpointConfig, messages: Messages) -> Spent:
    """The most that one attempt can use: a token is at least one byte of the question, the answer ends at its limit."""
    prompt = sum(len(message["content"].encode()) + _TEMPLATE_TOKENS for message in messages) + _TEMPLATE_TOKENS
    usage = Usage(prompt, endpoint.most_completion_tokens or 0)
    return Spent(1, usage, cost_of(endpoint, usage))


class Budget:
    """Counts what is spent and what the requests under way may still use."""

    def __init__(self, config: BudgetConfig, spent: Spent | None = None):
        self.config = config
        self.spent = spent or Spent()
        self._under_way: list[Spent] = []
        self._released = asyncio.Condition()

    @asynccontextmanager
    async def reserved(self, most: Spent) -> AsyncIterator[None]:
        """Hold room for one attempt; waits for those under way if only they stand in the way, else OverBudgetError."""
        async with self._released:
            while problem := self._problem(most):
                if not self._under_way:
                    raise OverBudgetError(problem)
                await self._released.wait()
            self._under_way.append(most)
        try:
            yield
        finally:
            self._under_way.remove(most)
            async with self._released:
                self._released.notify_all()

    def _problem(self, most: Spent) -> str:
        total = sum(self._under_way, self.spent) + most
        config = self.config
        if config.requests is not None and total.requests > config.requests:
            return f"{self.spent.requests:,} of {config.requests:,} requests are used"
        if config.tokens is not None and total.usage.total > config.tokens:
            left = config.tokens - self.spent.usage.total
            return f"{left:,} of {config.tokens:,} tokens are left, and the next request may use {most.usage.total:,}"
        if config.cost is not None and total.cost > config.cost:
            left_cost = config.cost - self.spent.cost
            return f"{left_cost:.4g} of {config.cost:g} is left to spend, and the next request may cost {most.cost:.2g}"
        return ""
