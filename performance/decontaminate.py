"""How much of an exam do the decontamination rules find in training data when it is disguised, and how much clean data do they drop?

    python performance/decontaminate.py --data-dir ../shared/data --clean ../shared/data/training/code_instructions/train.jsonl.gz

Goes in: the data of the exams, and records that should be kept. Each Python problem of an exam becomes a record in several disguises:
other names (by the syntax tree), a description in other words, both, without its examples, without any text. Each disguise comes in two
forms: a prompt that is continued, and a chat with a fenced block. A problem counts as found if both forms are dropped. Comes out: a table
an exam, a column a rule; then the clean records that each rule drops.

Beside our rules stand those of peers, written here after their descriptions: 8-grams of the prompt (open-r1, s1) and the description
or the solution as a substring (BigCode).
"""

import argparse
import ast
import gzip
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import orjson
from variants import prose_and_examples, renamed, reworded, reworded_prose, with_docstrings

from mftcoder.app.data.curate import _problems_of
from mftcoder.curation.decontamination.exams import DecontaminateConfig, ExamProblem
from mftcoder.curation.decontamination.rules import CodeRule, Decontamination, NgramRule
from mftcoder.curation.example import Example, parse_python
from mftcoder.data.records.conversation import Conversation, Message
from mftcoder.data.records.formats import read_record

EXAMS = "humaneval,mbpp,humanevalsynthesize-python"
Check = Callable[[Example], bool]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True, help="folder with the exams' data")
    parser.add_argument("--exams", default=EXAMS)
    parser.add_argument("--clean", type=Path, action="append", default=[], help="JSONL of records without the exams")
    parser.add_argument("--functions", type=int, default=1000, help="functions of the standard library")
    parser.add_argument(
        "--show", action="store_true", help="name the problems that are missed and the clean records that are dropped"
    )
    arguments = parser.parse_args()
    clean = {f"{arguments.functions:,} functions of the standard library": library_functions(arguments.functions)}
    clean |= {path.parent.name: list(read(path)) for path in arguments.clean}
    for exam in arguments.exams.split(","):
        config = DecontaminateConfig(benchmarks=(exam,), data_dir=arguments.data_dir)
        problems = list(_problems_of(config))
        columns = rules(config, problems)
        print(f"\n| {exam} | records | {' | '.join(columns)} |\n|---{'|---:' * (1 + len(columns))}|", flush=True)
        for title, count, found, missed in disguised(problems, columns):
            print(f"| {title} | {count} | {' | '.join(str(found[name]) for name in columns)} |", flush=True)
            if arguments.show and missed:
                print(f"  missed by the default rules: {', '.join(missed)}")
        for title, examples in clean.items():
            flagged = {name: sum(map(check, examples)) for name, check in columns.items()}
            print(f"| clean: {title} | {len(examples)} | {' | '.join(map(str, flagged.values()))} |", flush=True)
            if arguments.show:
                show_flagged(config, problems, examples)


def rules(config: DecontaminateConfig, problems: Sequence[ExamProblem]) -> dict[str, Check]:
    """Whether a record is dropped, by rule."""
    steps = {
        "default rules": Decontamination(config, problems),
        "10-gram alone": NgramRule(problems, config.ngram, ()),
        "code alone": CodeRule(problems),
        "published rules": Decontamination(config.model_copy(update={"rules": "published"}), problems),
    }
    ours = {name: (lambda example, step=step: step.check(example) is not None) for name, step in steps.items()}
    return {**ours, "8-gram of the prompt": prompt_grams(problems), "substring": substrings(problems)}


def prompt_grams(problems: Sequence[ExamProblem]) -> Check:
    """Eight words in a row of a problem's description in the record."""

    def grams(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return set(zip(*(words[start:] for start in range(8)), strict=False))

    known = {gram for problem in problems for gram in grams(problem.description)}
    return lambda example: not known.isdisjoint(grams(example.question) | grams(example.answer))


def substrings(problems: Sequence[ExamProblem]) -> Check:
    """A problem's description or its solution in the record, but for whitespace."""

    def plain(text: str) -> str:
        return " ".join(text.split())

    wanted = [plain(text) for problem in problems for text in (problem.description, body(problem.code)) if text.strip()]

    def check(example: Example) -> bool:
        said = plain(f"{example.question}\n{example.answer}")
        return any(text in said for text in wanted)

    return check


def body(code: str) -> str:
    """What a solution adds to its prompt: the lines behind the last function's docstring."""
    return continued(code)[1] if parse_python(code) else code


DISGUISES: dict[str, Callable[[str], str]] = {
    "verbatim": lambda code: code,
    "names changed": lambda code: renamed(code)[0],
    "text reworded": lambda code: with_docstrings(code, reworded),
    "names changed, text reworded": lambda code: with_docstrings(renamed(code)[0], reworded),
    "the same without examples": lambda code: with_docstrings(
        renamed(code)[0], lambda text: reworded_prose(prose_and_examples(text)[0])
    ),
    "names changed, no text": lambda code: with_docstrings(renamed(code)[0], lambda _: ""),
}


def disguised(
    problems: Sequence[ExamProblem], columns: Mapping[str, Check]
) -> Iterator[tuple[str, int, Counter[str], list[str]]]:
    """For each disguise: its name, the records, how many each rule finds, and those that the default rules miss."""
    readable = [problem for problem in problems if parse_python(problem.code)]
    for title, disguise in DISGUISES.items():
        found: Counter[str] = Counter()
        missed = []
        for problem in readable:
            forms = records(disguise(problem.code))
            hits = {name: all(map(check, forms)) for name, check in columns.items()}
            found.update(hits)
            missed += [] if hits["default rules"] else [problem.name]
        yield title, len(readable), found, missed


def records(code: str) -> list[Example]:
    """A solution as a prompt that is continued, and as a chat."""
    prompt, completion = continued(code)
    bare = with_docstrings(code, lambda _: "")
    return [example(prompt, completion), example(description(code), f"Here it is:\n\n```python\n{bare}\n```\n")]


def description(code: str) -> str:
    """The docstring of the module or of its last function."""
    tree = ast.parse(code)
    documented = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]
    return next((text for node in reversed(documented) if (text := ast.get_docstring(node))), "Write a function.")


def continued(code: str) -> tuple[str, str]:
    """The code up to the end of its last documented function's docstring, or of its head, and the rest."""
    tree = ast.parse(code)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    documented = [node for node in functions if ast.get_docstring(node, clean=False) is not None]
    if documented:
        line = documented[-1].body[0].end_lineno
    elif ast.get_docstring(tree, clean=False) is not None:
        line = tree.body[0].end_lineno
    else:
        line = functions[-1].body[0].lineno - 1 if functions else 0
    lines = code.split("\n")
    return "\n".join(lines[:line]) + "\n", "\n".join(lines[line:])


def example(question: str, answer: str) -> Example:
    """A record as a step sees it."""
    turns = (Message("user", question, False), Message("assistant", answer, True))
    return Example(Conversation("0", "clean", turns, ""))


def library_functions(count: int) -> list[Example]:
    """Functions of the standard library, drawn with a fixed seed: the docstring asks, the source answers."""
    found = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="ignore")
        lines = text.split("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                asked = ast.get_docstring(node) or f"Write the function {node.name} of the module {path.stem}."
                found.append(example(asked, f"```python\n{source}\n```"))
    return random.Random(0).sample(found, count)


def read(path: Path) -> Iterator[Example]:
    """The records of a JSONL file."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield Example(read_record(line, format="auto", task="clean", origin=f"{path}:{number}"), line)


def show_flagged(config: DecontaminateConfig, problems: Sequence[ExamProblem], examples: Sequence[Example]) -> None:
    """What the default rules drop of clean records: counts by rule, the commonest n-grams, and each hit by code."""
    step = Decontamination(config, problems)
    drops = [(example.conversation.origin, drop) for example in examples if (drop := step.check(example)) is not None]
    print(f"  {dict(Counter(drop.rule for _, drop in drops))}")
    grams = Counter(drop.details["gram"] for _, drop in drops if "gram" in drop.details)
    print("".join(f"  {count} x {gram}\n" for gram, count in grams.most_common(10)), end="")
    print(
        "".join(
            f"  {origin} {orjson.dumps(drop.details).decode()}\n" for origin, drop in drops if drop.rule != "exam_ngram"
        ),
        end="",
    )


if __name__ == "__main__":
    main()
