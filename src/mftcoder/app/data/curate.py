"""`mft data curate`: a recipe in, a curated folder out.

Finds the files and makes the steps. The work is the pipeline's. A step is imported if the recipe has it: all imports together take
longer than a small set of records.
"""

import ast
import importlib.metadata
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mftcoder.cache import cache_root
from mftcoder.curation.decontamination.exams import DecontaminateConfig, ExamProblem, problems_of_files
from mftcoder.curation.example import parse_python
from mftcoder.curation.filters.config import DifficultyConfig, Filter
from mftcoder.curation.filters.rules import RULES, kept_in_words
from mftcoder.curation.pipeline.blocks import RecordStep
from mftcoder.curation.pipeline.output import (
    CARD,
    Made,
    RecordFiles,
    finished,
    refuse_foreign_files,
    write_output,
)
from mftcoder.curation.pipeline.recipe import Recipe, Step, load_recipe, parse_recipe
from mftcoder.curation.pipeline.run import Barrier, InputError, exclusive, fingerprint, run_steps
from mftcoder.curation.syntax import LANGUAGES
from mftcoder.data.records.curated import PAGE, provenance_of
from mftcoder.data.records.files import TaskSources, find_sources
from mftcoder.errors import DataError
from mftcoder.log import OnProgress, no_progress
from mftcoder.processes import import_numpy_without_threads
from mftcoder.registry import SCORERS

if TYPE_CHECKING:
    from mftcoder.benchmarks.problem import Problem
    from mftcoder.curation.filters.difficulty import Scorer
    from mftcoder.reporting.page import Pages

_GRAMMARS = tuple(f"tree-sitter-{language}" for language in LANGUAGES)
_SHAPING = ("detect-secrets", "py3langid", "rensa", "ruff", "tree-sitter", *_GRAMMARS)
"""Packages whose versions shape the result."""
_OTHER_RULES = {
    "unusable": "a line that is no record of a known dialect",
    "exact_duplicate": "equal to a kept record but for whitespace",
    "near_duplicate": "similar to a kept record",
    "exam_ngram": "words in a row that a problem of an exam has too",
    "exam_code": "the code of an exam's solution, perhaps under other names",
    "exam_function_name": "the name of an exam's function",
    "exam_core_words": "the words of a problem's description",
    "failed_tests": "the answer fails its tests",
    "failed_asserts": "an assert of the answer fails",
    "failed_doctests": "a doctest of the answer fails",
    "failed_examples": "the answer contradicts an example of its question",
    "failed_import": "the answer raises an exception when it is imported",
    "failed_compile": "the answer does not compile",
    "not_run": "nothing of the record can be run",
}
"""What the rules of the other steps say, for the data card."""
Problems = Mapping[str, Sequence[ExamProblem]]


def curate_recipe(path: Path, overrides: Sequence[str] = (), *, on_progress: OnProgress = no_progress) -> Made:
    """Curate by the recipe in a file."""
    return curate(load_recipe(path, overrides), on_progress=on_progress)


def curate_paths(
    paths: Sequence[Path], out: Path, step: dict[str, Any], *, on_progress: OnProgress = no_progress
) -> Made:
    """Take files and folders, each a task with the name of its path, through one step."""
    tasks = [{"name": path.resolve().name.split(".")[0], "path": str(path)} for path in paths]
    recipe = parse_recipe({"tasks": tasks, "steps": [step], "output_dir": str(out)}, origin="command line")
    return curate(recipe, on_progress=on_progress)


def curate(recipe: Recipe, *, on_progress: OnProgress = no_progress) -> Made:
    """Curate the records of a recipe into its output directory. What is left may be nothing: see `kept` of the manifest."""
    output = Path(recipe.output_dir).expanduser()
    sources = find_sources(recipe.tasks, cache_root())
    problems = {
        name: tuple(_problems_of(step.decontaminate))
        for name, step in zip(recipe.step_names, recipe.steps, strict=True)
        if step.decontaminate is not None
    }
    exams = {step: [list(map(str, vars(problem).values())) for problem in found] for step, found in problems.items()}
    versions = {name: _version(name) for name in _SHAPING}
    models = [_model_state(step.difficulty) for step in recipe.steps if step.difficulty is not None]
    others = {"versions": versions, "exams": exams, "runs": _circumstances(recipe), "models": models}
    key = fingerprint(recipe, sources, others)
    refuse_foreign_files(output)
    _refuse_an_output_inside_of_an_input(recipe, output)
    _refuse_to_overwrite(recipe, sources, output)
    made = finished(output, key)
    if made is None:
        made = _curate(recipe, sources, output, key, problems, on_progress)
    elif _work_folder(output).exists():
        with exclusive(_work_folder(output)):  # a command that was killed while it removed its work
            shutil.rmtree(_work_folder(output))
    return made


def _curate(
    recipe: Recipe,
    sources: Sequence[TaskSources],
    output: Path,
    key: str,
    problems: Problems,
    on_progress: OnProgress,
) -> Made:
    preferences: list[dict[str, Any]] = []  # the files of pairs that are written
    steps, barriers = _make_steps(recipe, problems, preferences)
    work = _work_folder(output)
    with exclusive(work):
        blocks = work / key
        blocks.mkdir(exist_ok=True)
        records = RecordFiles(blocks / "output")
        try:
            outcome = run_steps(recipe, sources, steps, barriers, blocks, on_progress, records.take, _import_card_pages)
        except InputError:
            shutil.rmtree(work)
            raise
        facts = {"preferences": preferences, "exams": _exams(recipe, sources)}
        made = write_output(recipe, sources, outcome, records, key, facts, _cards)
        shutil.rmtree(work)
    return made


def _work_folder(output: Path) -> Path:
    return output.with_name(f".{output.name}.work")


def _import_card_pages() -> Callable[[Mapping[str, Any], Mapping[str, str]], "Pages"]:
    from mftcoder.reporting.data_card import card_pages  # matplotlib takes half a second

    return card_pages


def _cards(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The data card as text and as a page, by the names of their files."""
    bounds = {name: rule.keeps for name, rule in RULES.items()}
    for step in reversed(manifest["recipe"]["steps"]):
        bounds |= step.get("filter", {"rules": {}})["rules"]
    measures = {name: f"{rule.measures} (kept: {kept_in_words(bounds[name])})" for name, rule in RULES.items()}
    pages = _import_card_pages()(manifest, measures | _OTHER_RULES)
    return {CARD: pages.markdown, PAGE: pages.html}


def _circumstances(recipe: Recipe) -> list[str]:
    if all(step.verify is None for step in recipe.steps):
        return []
    from mftcoder.curation.pipeline.verify import circumstances

    return circumstances()


def _exams(recipe: Recipe, sources: Sequence[TaskSources]) -> dict[str, dict[str, str]]:
    """For each task the benchmarks that are kept out of it, with their sources: by this recipe, or by the one that made its files."""
    here: dict[str, str] = {}
    for step in recipe.steps:
        if step.decontaminate is not None:
            from mftcoder.benchmarks.catalogue import expand, load

            data_dir = Path(step.decontaminate.data_dir).expanduser() if step.decontaminate.data_dir else None
            here |= {name: load(name, data_dir).source for name in expand(step.decontaminate.benchmarks)}
    return {
        task.name: {**(provenance_of(found.training).exams or {}), **here}
        for task, found in zip(recipe.tasks, sources, strict=True)
    }


def _refuse_an_output_inside_of_an_input(recipe: Recipe, output: Path) -> None:
    names = [name for task in recipe.tasks for name in (task.path, *task.files, *task.validation) if name]
    for name in names:
        if Path(name).expanduser().resolve() in output.resolve().parents:
            raise DataError(
                f"{output}: lies in {name}, which is an input: the next run would read it as data. "
                "Choose an output directory outside of it"
            )


def _refuse_to_overwrite(recipe: Recipe, sources: Sequence[TaskSources], output: Path) -> None:
    inputs = [file.path for task in sources for file in (*task.training, *task.validation)]
    files = [
        Path(step.verify.preferences).expanduser() for step in recipe.steps if step.verify and step.verify.preferences
    ]
    if files:
        from mftcoder.curation.pipeline.preferences import refuse_to_overwrite
    for file in files:
        refuse_to_overwrite(file, inputs, output)
    if len(set(files)) < len(files):
        raise DataError("two steps write their preferences to the same file")


def _version(library: str) -> str:
    """Of a package; empty if it is not installed."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _problems_of(config: DecontaminateConfig) -> Iterator[ExamProblem]:
    from mftcoder.benchmarks.catalogue import expand, load

    data_dir = Path(config.data_dir).expanduser() if config.data_dir else None
    for name in expand(config.benchmarks):
        yield from (_exam_problem(name, problem) for problem in load(name, data_dir).problems)
    yield from problems_of_files(config.files, cache_root())


_DESCRIPTIONS = ("text", "instruction", "docstring", "desc_en", "prompt_text_chinese")


def _exam_problem(benchmark: str, problem: "Problem") -> ExamProblem:
    """What of a benchmark's problem a record may hold. Tests are left out: they share calls with every other test."""
    solution = problem.prompt + problem.reference
    described = [str(problem.fields[name]) for name in _DESCRIPTIONS if problem.fields.get(name)]
    tree = parse_python(solution) if problem.language == "python" else None
    if tree is not None:
        described += [
            text for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) if (text := ast.get_docstring(node))
        ]
    code = solution if problem.language == "python" else ""
    description = described[0] if described else problem.prompt
    return ExamProblem(f"{benchmark} {problem.id}", (solution, *described), code, problem.entry_point, description)


def _make_steps(
    recipe: Recipe, problems: Problems, preferences: list[dict[str, Any]]
) -> tuple[dict[str, RecordStep], dict[str, Barrier]]:
    """The steps that look at one record, and those that compare records, by name."""
    steps: dict[str, RecordStep] = {}
    barriers: dict[str, Barrier] = {}
    for name, step in zip(recipe.step_names, recipe.steps, strict=True):
        if step.filter is not None:
            steps[name] = Filter(step.filter)
        elif step.decontaminate is not None:
            import_numpy_without_threads()
            from mftcoder.curation.decontamination.rules import Decontamination

            steps[name] = Decontamination(step.decontaminate, problems[name])
        else:
            barriers[name] = _make_barrier(name, step, recipe.num_proc, preferences)
    return steps, barriers


def _make_barrier(name: str, step: Step, processes: int | None, preferences: list[dict[str, Any]]) -> Barrier:
    if step.dedup is not None:
        from mftcoder.curation.pipeline.dedup import Dedup

        return Dedup(step.dedup)
    if step.verify is not None:
        from mftcoder.curation.pipeline.preferences import Preferences
        from mftcoder.curation.pipeline.verify import Verification

        return Verification(name, step.verify, processes, Preferences(preferences).write)
    from mftcoder.curation.pipeline.difficulty import Difficulty

    assert step.difficulty is not None
    return Difficulty(name, step.difficulty, _load_scorer)


def _load_scorer(config: DifficultyConfig) -> "Scorer":
    """Found by its name, so that curation without this step needs no torch."""
    from mftcoder.config.schema import ModelConfig

    scorer: Scorer = SCORERS.load("transformers")(ModelConfig(model_name_or_path=config.model, dtype=config.dtype))
    return scorer


def _model_state(config: DifficultyConfig) -> list[list[str | int]]:
    """The files of a model with size and time, and the libraries that compute with it: another model makes another result."""
    path = Path(config.model).expanduser()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    libraries: list[list[str | int]] = [[name, _version(name)] for name in ("torch", "transformers", "tokenizers")]
    return libraries + [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
