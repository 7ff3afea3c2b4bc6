"""What `mft data mine` makes of a folder, and whether all of it parses: a line for each task, then the tests that can be run.

    python performance/mined.py FOLDER [--tests | --run]

Goes in: a folder of code in any of the six languages, and the extra `curate`. Comes out: how many records each task has, how many of them
parse, and the licences. The answer must parse, and so must the question where it shows a whole function; a gap is joined with what is
around it, and a doc comment with its function. `complete_line` and `complete_block` have no whole function to parse: counted only.
With --tests, the names of the mined tests, as `file name`, for the runner of the language. With --run, the mined doctests of Python are run
here, each with the names of its module: only for code that you trust. Exit code 1 if a record does not parse or a doctest fails.
"""

import argparse
import ast
import doctest
import importlib
import re
import sys
from pathlib import Path
from typing import Any

from mftcoder.curation.example import fenced_blocks
from mftcoder.curation.mining.languages.trees import function_tree
from mftcoder.curation.mining.mine import MiningOptions, mine
from mftcoder.curation.mining.tasks import TASK_NAMES
from mftcoder.curation.syntax import LANGUAGES

NOT_ALONE = frozenset({"complete_line", "complete_block"})
CATCH = re.compile(r"\A(?:TEST_CASE|SCENARIO)\s*\([^\n]*\)")
TEST_NAME = re.compile(
    r"""func\s+(Test\w+)|(?:it|test|specify)\(\s*['"`](.+?)['"`],|void\s+(\w+)\s*\(|(TEST\w*\([^)]*\))|\bfn\s+(\w+)|def\s+(\w+)"""
)


def parses(code: str, language: str) -> bool:
    """Whether code is a program of its language, alone or as a member of a class."""
    if language != "python":
        return function_tree(CATCH.sub("void test_case()", code), language, "Owner") is not None
    try:
        return bool(ast.parse(code)) or True
    except SyntaxError:
        return code.lstrip().startswith(">>>")


def codes_of(task: str, record: dict[str, Any]) -> list[tuple[str, str]]:
    """The whole programs of a record, each with its language."""
    language = record["language"]
    question, answer = (turn["content"] for turn in record["chat_rounds"])
    asked, answered = ([(block.code, block.language) for block in fenced_blocks(text)] for text in (question, answer))
    if task == "fill_middle":
        return [(record["prefix"] + record["middle"] + record["suffix"], language)]
    if task == "write_docstring":
        return [(f"{answer if language != 'python' else ''}\n{asked[-1][0]}", language)]
    return [*answered, *(asked[-1:] if task in ("repair_function", "translate", "write_test") else [])]


def test_name(record: dict[str, Any]) -> str:
    """`file name` of a mined test."""
    answer = record["chat_rounds"][1]["content"]
    found = TEST_NAME.search(answer) or TEST_NAME.search(record["chat_rounds"][0]["content"])  # a doctest has no name
    name = next(filter(None, found.groups())) if found else "?"
    return f"{record['source'].rpartition(':')[0]} {name}"


def passes(record: dict[str, Any]) -> bool:
    """Run a mined doctest with the names of the module that it stands in."""
    path = record["source"].rpartition(":")[0]
    module = importlib.import_module(path.removeprefix("src/").removesuffix(".py").replace("/", "."))
    code = fenced_blocks(record["chat_rounds"][1]["content"])[0].code
    test = doctest.DocTestParser().get_doctest(code, dict(vars(module)), record["id"], None, 0)
    return doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0


def run_doctests(folder: Path, records: list[dict[str, Any]]) -> int:
    """The number of those that fail; prints how many pass."""
    sys.path[:0] = [str(folder), str(folder / "src")]
    doctests = [record for record in records if record["chat_rounds"][1]["content"].startswith("```python\n>>>")]
    passed = sum(map(passes, doctests))
    print(f"doctests           {len(doctests):6}  passed: {passed}")
    return len(doctests) - passed


def main() -> int:
    """Mine, parse, count."""
    parser = argparse.ArgumentParser(description="Mine a folder and parse every record.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tests", action="store_true", help="print the names of the mined tests")
    parser.add_argument("--run", action="store_true", help="run the mined doctests of Python")
    parser.add_argument("--languages", nargs="*", default=list(LANGUAGES))
    arguments = parser.parse_args()
    options = MiningOptions(tasks=TASK_NAMES, valid_share=0.0, languages=tuple(arguments.languages))
    mined = mine(arguments.folder, options)
    records = {name: task.train for name, task in mined.tasks.items()}
    if arguments.tests:
        print(*(test_name(record) for record in records["write_test"]), sep="\n")
        return 0
    print(f"{arguments.folder.name}: {mined.functions} functions, {dict(mined.languages)}, {dict(mined.licenses)}")
    wrong = 0
    for task, made in records.items():
        failed = [
            record["id"]
            for record in made
            if task not in NOT_ALONE and not all(parses(*code) for code in codes_of(task, record))
        ]
        wrong += len(failed)
        print(f"{task:18} {len(made):6}  " + ("" if task in NOT_ALONE else f"parse: {len(made) - len(failed)}"))
        print(*(f"    does not parse: {name}" for name in failed[:3]), sep="\n", end="\n" if failed else "")
    if arguments.run:
        wrong += run_doctests(arguments.folder, records["write_test"])
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
