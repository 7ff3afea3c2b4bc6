"""The reward of an answer from executed programs: the share of a problem's tests that it passes, and small parts for form.

What runs the programs is `mft evaluate`: a verdict is proven there, so a reward cannot be had by printing or by exiting. Nothing is
run here.
"""

import ast
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mftcoder.benchmarks.answers.extraction import best_block
from mftcoder.benchmarks.families.exam import NO_ASSERT
from mftcoder.errors import ConfigError, UnjudgedError
from mftcoder.registry import did_you_mean

NOT_CODE = ("SyntaxError:", "IndentationError:", "TabError:", NO_ASSERT)
PARTS = ("tests", "passed", "compiles", "format")
DEFAULT_REWARD = "tests=1,compiles=0.1,format=0.1"


@dataclass(frozen=True)
class RewardWeights:
    """What the parts of a reward count; the reward is their weighted mean, between 0 and 1."""

    tests: float = 1.0  # the share of the problem's tests that the answer passes
    passed: float = 0.0  # 1 if it passes all of them
    compiles: float = 0.1  # 1 if it can be compiled
    format: float = 0.1  # 1 if it has a fenced block with the function

    @classmethod
    def parse(cls, text: str) -> "RewardWeights":
        """`tests=1,format=0.2`; parts that are not named count nothing. ConfigError for an unknown part or a wrong number."""
        found = dict.fromkeys(PARTS, 0.0)
        problems = []
        for item in (item for item in text.split(",") if item.strip()):
            name, _, value = (part.strip() for part in item.partition("="))
            if name not in PARTS:
                problems.append(f"--reward: unknown part '{name}'.{did_you_mean(name, PARTS)}")
                continue
            try:
                found[name] = float(value)
            except ValueError:
                found[name] = math.nan
            if not 0 <= found[name] < math.inf:
                problems.append(f"--reward: {name}: must be a number of at least 0, not '{value}'")
        if not problems and not any(found.values()):
            problems.append("--reward: no part counts, so every answer would have the same reward")
        if problems:
            raise ConfigError(*problems)
        return cls(**found)

    def reward(self, outcome: "Outcome") -> float:
        """The weighted mean of an answer's parts."""
        total = sum(getattr(self, name) for name in PARTS)
        # Rounded, so that outcomes that are worth the same have the same reward: their group has no signal.
        return round(sum(getattr(self, name) * float(getattr(outcome, name)) for name in PARTS) / total, 9)


@dataclass(frozen=True)
class Outcome:
    """What running an answer led to."""

    tests: float  # the share that it passes, 0 to 1; 0 for an answer that cheated in any of them
    passed: bool
    compiles: bool
    format: bool


def outcome_of(status: str, message: str, text: str, name: str, parts: Sequence[str]) -> Outcome:
    """The outcome of an answer: its verdict on all tests with the error's `message`, its `text`, the function's `name`, and its verdicts
    on each test alone; without such (a test that a model wrote) the share is 0 or 1. UnjudgedError if the sandbox failed."""
    if "sandbox_error" in (status, *parts):
        raise UnjudgedError(
            f"an answer about {name}: the sandbox failed, so it has no reward. Type the same command again"
        )
    passed, cheated = status == "passed", "cheated" in (status, *parts)
    share = sum(part == "passed" for part in parts) / len(parts) if parts else float(passed)
    compiles = status != "compile_error" and not any(sign in message for sign in NOT_CODE)
    block = best_block(text, name)
    return Outcome(0.0 if cheated else share, passed, compiles, block is not None and name in block)


def single_tests(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The problem once for each of its asserts, `#0`, `#1`, ...; each keeps the other statements. [] if it has fewer than two asserts.

    The asserts stand at the top level, or in HumanEval's function `check`. One that calls nothing (`assert True`) tests nothing, and counts as
    another statement.
    """
    if record["kind"] == "test":
        return []
    tree = ast.parse(record["test"])
    body = _body_with_asserts(tree)
    statements = list(body)
    asserts = [node for node in statements if _is_test(node)]
    found = []
    for number, kept in enumerate(asserts if len(asserts) > 1 else ()):
        body[:] = [node for node in statements if node is kept or node not in asserts]
        found.append({**record, "task_id": f"{record['task_id']}#{number}", "test": f"{ast.unparse(tree)}\n"})
    return found


def _body_with_asserts(tree: ast.Module) -> list[ast.stmt]:
    """The statements of the module, or those of its function `check` if no assert is among them."""
    if any(map(_is_test, tree.body)):
        return tree.body
    checks = (node.body for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "check")
    return next(checks, tree.body)


def _is_test(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assert) and any(isinstance(part, ast.Call) for part in ast.walk(node.test))


@dataclass(frozen=True)
class Graded:
    """A sampled answer with its reward."""

    problem_id: str
    text: str
    is_cut: bool  # ended by the token limit
    reward: float


@dataclass(frozen=True)
class Groups:
    """The groups that are trained on as records, and how many were left out, by reason."""

    records: list[dict[str, Any]]
    equal: int  # groups whose rewards are all equal: no signal
    cut: int  # groups whose answers were all cut by the token limit
    mean_reward: float  # of all answers


def groups_of(graded: Iterable[Graded], prompts: Mapping[str, str]) -> Groups:
    """A record for each problem with a signal. An answer that the token limit cut counts in its group and is not trained (DAPO)."""
    by_problem: dict[str, list[Graded]] = {}
    for one in graded:
        by_problem.setdefault(one.problem_id, []).append(one)
    records, equal, cut = [], 0, 0
    for name, group in by_problem.items():
        rewards = [one.reward for one in group]
        trained = [not one.is_cut and bool(one.text.strip()) for one in group]
        if min(rewards) == max(rewards):
            equal += 1
        elif not any(trained):
            cut += 1
        else:
            texts = [one.text if one.text.strip() else "(empty)" for one in group]
            fields = {"completions": texts, "rewards": rewards, "trained": trained}
            records.append({"id": name, "prompt": prompts[name], **fields})
    every = [one.reward for group in by_problem.values() for one in group]
    return Groups(records, equal, cut, math.fsum(every) / len(every))
