"""`mft data synthesize`: a model behind an endpoint writes records; what it wrote, what was dropped, and what it cost end in a folder."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from mftcoder.curation.synthesis.checked import REPAIR, WRITE_TESTS, Repair, Tests
from mftcoder.curation.synthesis.config import SynthesisConfig, load_synthesis, parse_synthesis
from mftcoder.curation.synthesis.evol import Evol
from mftcoder.curation.synthesis.exercises import Exercises
from mftcoder.curation.synthesis.oss import OssInstruct
from mftcoder.curation.synthesis.output import Synthesized, check_libraries, refuse_foreign_folder, write_output
from mftcoder.curation.synthesis.prompts import Prompts
from mftcoder.curation.synthesis.prompts import copy_prompts as copy_prompts  # for the command
from mftcoder.curation.synthesis.sources import choose_snippets, read_examples, read_topics
from mftcoder.curation.synthesis.trials import Trials
from mftcoder.curation.synthesis.work import Collected, Method
from mftcoder.curation.teacher.budget import Budget
from mftcoder.curation.teacher.endpoint import Endpoint
from mftcoder.curation.teacher.journal import FILE, RequestJournal
from mftcoder.curation.teacher.teacher import Teacher, in_order, spent_so_far
from mftcoder.execution.run_programs import Sandbox
from mftcoder.log import OnProgress, no_progress, say


def synthesize_recipe(
    path: Path, overrides: Sequence[str] = (), *, on_progress: OnProgress = no_progress
) -> Synthesized:
    """Synthesize by a YAML or JSON file."""
    return synthesize(load_synthesis(path, overrides), on_progress=on_progress)


def synthesize_options(options: dict[str, Any], *, on_progress: OnProgress = no_progress) -> Synthesized:
    """Synthesize by options that have the form of such a file."""
    return synthesize(parse_synthesis(options, origin="command line"), on_progress=on_progress)


def synthesize(config: SynthesisConfig, *, on_progress: OnProgress = no_progress) -> Synthesized:
    """Ask for the records of a method, and write what came of it. The same call goes on where a stopped one was.

    If the budget does not allow the next request, what is finished is written, and `unfinished` of the result says so.
    """
    folder = Path(config.output_dir).expanduser()
    prompts = Prompts(config.method, Path(config.prompts).expanduser() if config.prompts else None)
    check_libraries(config)
    refuse_foreign_folder(folder)
    collected = Collected()
    items = _items(config, collected)[: config.limit]
    with RequestJournal(folder / FILE) as journal:
        steps, unfinished = asyncio.run(_ask(config, items, prompts, journal, collected, on_progress))
        return write_output(config, steps, collected, journal, prompts.fingerprints, unfinished)


def _items(config: SynthesisConfig, collected: Collected) -> list[Any]:
    """What the method starts from. Lines of data files that cannot be used are dropped."""
    if config.exercises:
        return read_topics(Path(config.exercises.topics).expanduser())
    if config.evol:
        return read_examples(config.evol.records, "evol", collected)
    if config.oss:
        most = config.limit or config.oss.snippets
        chosen = min(most, config.oss.snippets)
        return choose_snippets(Path(config.oss.folder).expanduser(), chosen, config.oss.lines, config.seed)
    if config.tests:
        return read_examples(config.tests.records, WRITE_TESTS, collected)
    if config.repair:
        return read_examples(config.repair.records, REPAIR, collected)
    raise AssertionError("a config has one method")


def _method(
    config: SynthesisConfig, items: list[Any], prompts: Prompts, teachers: Sequence[Teacher], stack: AsyncExitStack
) -> Method:
    teacher = teachers[0]
    if config.exercises:
        return Exercises(config.exercises, items, prompts, teacher, teachers[-1])
    if config.evol:
        return Evol(config.evol, items, prompts, teacher, config.seed)
    if config.oss:
        return OssInstruct(items, prompts, teacher)
    sandbox = stack.enter_context(Sandbox())
    say(f"sandbox: {sandbox.level} ({', '.join(sandbox.covers)})")
    if config.tests:
        return Tests(config.tests, items, prompts, teacher, Trials(sandbox))
    assert config.repair is not None
    return Repair(config.repair, items, prompts, teacher, Trials(sandbox))


async def _ask(
    config: SynthesisConfig,
    items: list[Any],
    prompts: Prompts,
    journal: RequestJournal,
    collected: Collected,
    on_progress: OnProgress,
) -> tuple[tuple[str, ...], str]:
    """Make the records of all items. Returns the method's steps, and why it stopped early (empty if it did not)."""
    budget = Budget(config.budget, spent_so_far(journal, config.endpoints))
    async with AsyncExitStack() as stack:
        teachers = [
            Teacher(await stack.enter_async_context(Endpoint(endpoint)), journal, budget, seed=config.seed)
            for endpoint in config.endpoints
        ]
        method = _method(config, items, prompts, teachers, stack)
        count = len(method.items)

        def show(done: int) -> None:
            spent = budget.spent
            failed = f", {journal.problems.total():,} failed" if journal.problems else ""
            cost = f", cost {spent.cost:.4g}" if spent.cost else ""
            note = f"{spent.requests:,} requests{failed}, {spent.usage.total:,} tokens{cost}"
            on_progress(f"asking {config.endpoint.model}", done, count, note)

        show(0)
        _, stop = await in_order(
            lambda number: method.make(number, collected),
            range(count),
            width=config.endpoint.concurrency,
            on_done=show,
        )
    return method.steps, str(stop or "")
