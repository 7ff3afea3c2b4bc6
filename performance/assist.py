"""The guarantees of `mft assist` on 50 functions of the standard library, with a model that answers rightly by rule or lies.

    python performance/assist.py                      the scripted model
    python performance/assist.py --model demo/model --only calendar.isleap posixpath.isabs
                                                      the model that `mft demo` trained (or another folder, or a run)

Prints what was asked, accepted and refused, by verb and reason; of a real model also each result. Every accepted result is checked again by other means: plain `ast`, `git apply`,
and a Python process of its own. The exit code is 1 if one of them does not hold, or if a lie is accepted. assist_languages.py does the same for
the other languages.
"""

import argparse
import ast
import importlib
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mftcoder.assistant.assistant import Assistant
from mftcoder.assistant.checks.patches import make_patch
from mftcoder.assistant.functions import FunctionText, find_function
from mftcoder.assistant.rounds import Proposal
from mftcoder.assistant.suites.trials import mutants
from mftcoder.curation.example import fenced
from mftcoder.curation.teacher.endpoint import Reply
from mftcoder.errors import MftError, NoAnswerAcceptedError

CALLS: Mapping[str, Sequence[str]] = {
    "textwrap.dedent": ("'  a\\n    b'", "'\\ta\\n\\tb\\n'"),
    "textwrap.indent": ("'a\\n\\nb', '> '", "'x', '  '"),
    "textwrap.shorten": ("'a long text of words', 10", "'short', 10"),
    "textwrap.fill": ("'one two three four', 8", "'one', 3"),
    "textwrap.wrap": ("'one two three four', 8", "'', 8"),
    "string.capwords": ("'ab cd  ef'", "'a-b c-d', '-'"),
    "shlex.quote": ('"it\'s"', "'plain'", "''"),
    "shlex.join": ("['a', 'b c']", "[]"),
    "statistics.mean": ("[1, 2, 6]", "[5]"),
    "statistics.median": ("[3, 1, 2]", "[4, 1, 3, 2]"),
    "statistics.median_low": ("[4, 1, 3, 2]", "[3, 1, 2]"),
    "statistics.median_high": ("[4, 1, 3, 2]", "[3, 1, 2]"),
    "statistics.median_grouped": ("[1, 2, 2, 3, 4, 4]", "[1, 3, 3, 5, 7], 2"),
    "statistics.mode": ("[1, 2, 2, 3]", "['a']"),
    "statistics.multimode": ("[1, 1, 2, 2, 3]", "[]"),
    "statistics.harmonic_mean": ("[40, 60]", "[3]"),
    "calendar.weekday": ("2024, 2, 29", "1999, 12, 31"),
    "inspect.cleandoc": ("'a\\n  b\\n    c'", "'  x'"),
    "heapq.nsmallest": ("2, [3, 1, 2]", "5, [2, 1]"),
    "heapq.nlargest": ("2, [3, 1, 2]", "1, [2, 5]"),
    "fnmatch.translate": ("'*.py'", "'a[!b]?'"),
    "fnmatch.filter": ("['a.py', 'b.c'], '*.py'", "[], '*'"),
    "posixpath.join": ("'a', 'b'", "'a/', '/b', 'c'"),
    "posixpath.basename": ("'a/b.c'", "'a/'"),
    "posixpath.dirname": ("'a/b.c'", "'/a'"),
    "difflib.get_close_matches": ("'appel', ['ape', 'apple', 'peach']", "'x', ['a']"),
    "posixpath.splitext": ("'a/b.tar.gz'", "'.x'"),
    "posixpath.isabs": ("'/a'", "'a'"),
    "posixpath.commonpath": ("['a/b/c', 'a/b/d']", "['/a', '/b']"),
    "posixpath.split": ("'a/b/c'", "'/a'"),
    "ntpath.dirname": ("'c:/a/b.c'", "'a/'"),
    "ntpath.basename": ("'c:\\\\a\\\\b.c'", "'a/b'"),
    "html.escape": ("'<a href=\"x\">&'", "'<\"', False"),
    "html.unescape": ("'&lt;&amp;&#65;'", "'plain'"),
    "urllib.parse.quote": ("'a b/c'", "'a b/c', ''"),
    "urllib.parse.unquote": ("'a%20b'", "'plain'"),
    "urllib.parse.urljoin": ("'http://a/b/c', '../d'", "'http://a/b', 'http://x/y'"),
    "urllib.parse.urlencode": ("{'a': 1, 'b': 'c d'}", "{}"),
    "base64.b32encode": ("b'abc'", "b''"),
    "base64.b85encode": ("b'abcde'", "b'a'"),
    "base64.b64decode": ("'YWJj'", "b'YQ=='"),
    "base64.urlsafe_b64encode": ("b'\\xff\\xfe'", "b'abc'"),
    "colorsys.rgb_to_hls": ("0.5, 0.25, 0.75", "0.5, 0.5, 0.5"),
    "colorsys.rgb_to_hsv": ("0.5, 0.25, 0.75", "0.2, 0.4, 0.1"),
    "colorsys.hsv_to_rgb": ("0.25, 0.5, 1.0", "0.9, 0.5, 0.5"),
    "calendar.isleap": ("2000", "1900", "2024"),
    "calendar.leapdays": ("2000, 2025", "1900, 1901"),
    "calendar.monthrange": ("2024, 2", "2023, 12"),
    "glob.has_magic": ("'*.py'", "'a.py'"),
    "glob.escape": ("'a[b]*'", "'plain'"),
}
"""Function -> arguments of calls. What they give is taken from the standard library itself."""
MUTANTS = 6


@dataclass(frozen=True)
class Subject:
    """One function: its name, its file in the folder, and calls with what they give."""

    name: str
    place: str
    calls: tuple[tuple[str, str], ...]

    @property
    def file(self) -> str:
        """The name of its file."""
        return self.place.split(":")[0]

    @property
    def short(self) -> str:
        """The name of the function alone."""
        return self.place.split(":")[1]


class Scripted:
    """A model that gives the answers that it was told, then prose."""

    def __init__(self) -> None:
        self.answers: list[str] = []

    def ask(self, messages: Any, *, seed: int = 0) -> Reply:
        """The next answer."""
        return Reply(self.answers.pop(0) if self.answers else "I cannot help.", "stop", "scripted", None)

    def go_on(self, before: str, after: str, *, stop: Any, max_tokens: int) -> Reply:
        """The next answer, as a completion."""
        return self.ask(())


def subjects(folder: Path, names: Sequence[str]) -> list[Subject]:
    """Files of the standard library copied into a folder, each with its functions."""
    found = []
    for name in names:
        calls = CALLS[name]
        module, _, function = name.rpartition(".")
        loaded = importlib.import_module(module)
        target = folder / f"{module.replace('.', '_')}.py"
        shutil.copyfile(str(loaded.__file__), target)
        values = tuple((call, repr(eval(f"f({call})", {"f": getattr(loaded, function)}))) for call in calls)
        found.append(Subject(name, f"{target.name}:{function}", values))
    return found


def right_tests(subject: Subject, calls: Sequence[tuple[str, str]] | None = None) -> str:
    """A test for each call."""
    lines = [
        f"def test_{number}():\n    assert {subject.short}({call}) == {value}\n"
        for number, (call, value) in enumerate(subject.calls if calls is None else calls)
    ]
    return fenced("\n\n".join(lines))


def commented(function: FunctionText) -> str:
    """The function with a comment above its first statement."""
    node = ast.parse(function.text).body[0]
    assert isinstance(node, ast.FunctionDef)
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    lines = function.text.splitlines(True)
    row = body[0].lineno - 1
    indent = lines[row][: len(lines[row]) - len(lines[row].lstrip())]
    return "".join([*lines[:row], f"{indent}# The work begins here.\n", *lines[row:]])


def same_work(function: FunctionText) -> str:
    """The function with one statement more, which does nothing."""
    tree = ast.parse(function.text)
    node = tree.body[0]
    assert isinstance(node, ast.FunctionDef)
    has_docstring = ast.get_docstring(node) is not None
    opening, body = (node.body[:1], node.body[1:]) if has_docstring else ([], node.body)
    node.body = [*opening, *ast.parse("assert True").body, *body]
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def broken(function: FunctionText, call: str) -> str:
    """The function that raises RuntimeError for the first argument of one call."""
    node = ast.parse(function.text).body[0]
    assert isinstance(node, ast.FunctionDef)
    parameters = [*node.args.posonlyargs, *node.args.args]
    first = ast.unparse(ast.parse(f"f({call})", mode="eval").body.args[0])  # type: ignore[attr-defined]
    check = ast.parse(f"if {parameters[0].arg} == {first}:\n    raise RuntimeError('broken')").body
    node.body = [*node.body[:1], *check, *node.body[1:]] if ast.get_docstring(node) else [*check, *node.body]
    return ast.unparse(ast.fix_missing_locations(node)) + "\n"


LIES: Mapping[str, tuple[Callable[[Subject, FunctionText, str], str], ...]] = {
    "comment": (
        lambda s, f, bug: fenced(commented_bug(f, bug)),
        lambda s, f, bug: fenced(commented(f).replace("# The work", "# noqa: The work")),
        lambda s, f, bug: fenced(commented(f)) + fenced(f.text),
    ),
    "test": (
        lambda s, f, bug: fenced(f"def test_a():\n    assert {s.short}({s.calls[0][0]}) == {s.calls[0][1]} or True\n"),
        lambda s, f, bug: fenced(f"def test_a():\n    try:\n        assert {s.short}() == 1\n    except Exception:\n        pass\n"),
        lambda s, f, bug: fenced(f"{s.short} = lambda *a: 1\n\n\ndef test_a():\n    assert {s.short}(2) == 1\n"),
        lambda s, f, bug: fenced(f"import sys\n\n\ndef test_a():\n    print('PASS', {s.short})\n    sys.exit(0)\n"),
    ),
    "optimise": (
        lambda s, f, bug: fenced(bug),
        lambda s, f, bug: fenced(same_work(f).replace(f"def {s.short}(", f"def {s.short}(extra, ", 1)),
        lambda s, f, bug: fenced(make_patch("../other.py", "a\n", "b\n"), "diff"),
        lambda s, f, bug: fenced(same_work(f).replace("assert True", "__import__('os').system('true')", 1)),
    ),
    "fix": (lambda s, f, bug: fenced(bug), lambda s, f, bug: "It is fixed now."),
    "complete": (lambda s, f, bug: "((((", lambda s, f, bug: ""),
    "explain": (lambda s, f, bug: "It is \x1b[31mred\x1b[0m.", lambda s, f, bug: " "),
    "review": (lambda s, f, bug: f"{s.file}:1: bad", lambda s, f, bug: "Fine."),
}  # fmt: skip


def commented_bug(function: FunctionText, bug: str) -> str:
    """Another program with a comment."""
    return f"{bug.rstrip()}\n    # Done.\n"


def without_docs(text: str) -> str:
    """The syntax tree without docstrings, by other code than that of the assistant."""

    class Strip(ast.NodeTransformer):
        def generic_visit(self, node: ast.AST) -> ast.AST:
            super().generic_visit(node)
            body = getattr(node, "body", None)
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            first = body[0] if documented and body else None
            if isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str):
                node.body = body[1:]  # type: ignore[attr-defined]
            return node

    return ast.dump(Strip().visit(ast.parse(text)))


def tests_pass(code: str, tests: str) -> bool:
    """Whether tests pass on code in a plain Python process."""
    calls = "\n".join(f"{node.name}()" for node in ast.parse(tests).body if isinstance(node, ast.FunctionDef))
    body = "\n".join(line for line in tests.splitlines() if not line.startswith(("from ", "import pytest")))
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run.py"
        script.write_text(f"{code}\n\n{body}\n{calls}\n", encoding="utf-8")
        try:
            command = [sys.executable, "-c", "import run"]  # as __main__ some modules do something else
            return subprocess.run(command, cwd=folder, capture_output=True, timeout=5).returncode == 0
        except subprocess.TimeoutExpired:
            return False


def applies(proposal: Proposal) -> bool:
    """Whether git applies the patch, and the file is then what the proposal says."""
    assert proposal.read is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / proposal.name
        path.parent.mkdir(exist_ok=True)
        path.write_text(proposal.read.text, encoding="utf-8")
        done = subprocess.run(["git", "apply", "-"], input=proposal.patch.encode(), cwd=folder, capture_output=True)
        return done.returncode == 0 and path.read_text(encoding="utf-8") == proposal.new_text


def holds(proposal: Proposal, subject: Subject, bugs: tuple[str, ...]) -> bool:
    """Whether an accepted result has what its verb promises."""
    old, new = proposal.read.text if proposal.read else "", proposal.new_text or ""
    if proposal.verb == "comment":
        return applies(proposal) and without_docs(old) == without_docs(new)
    if proposal.verb == "complete":
        return applies(proposal) and old in (new.replace(proposal.text, "", 1), _without(new, proposal.text, old))
    if proposal.verb == "test":
        return tests_pass(old, proposal.text) and not all(tests_pass(bug, proposal.text) for bug in bugs)
    if proposal.verb in ("optimise", "fix"):
        return applies(proposal) and (not proposal.tests or tests_pass(new, proposal.tests))
    return proposal.text.isprintable() or all(char.isprintable() or char in "\n\t" for char in proposal.text)


def _without(new: str, text: str, old: str) -> str:
    """The new file without the one insertion that makes it the old one, if there is such a place."""
    starts = (at for at in range(len(new)) if new.startswith(text, at))
    return next((made for at in starts if (made := new[:at] + new[at + len(text) :]) == old), "")


Holds = Callable[[Proposal, Any, tuple[str, ...]], bool]
"""Whether an accepted result has what its verb promises."""


class Table:
    """What was asked, by verb: accepted, refused by reason, and what should not have been."""

    def __init__(self, holds: Holds) -> None:
        self.holds = holds
        self.rows: dict[str, Counter[str]] = {}
        self.reasons: dict[str, Counter[str]] = {}
        self.wrong: list[str] = []

    def count(self, verb: str, what: str) -> None:
        """One more."""
        self.rows.setdefault(verb, Counter())[what] += 1

    def run(self, verb: str, subject: Any, work: Callable[[], Proposal], bugs: tuple[str, ...], kind: str) -> None:
        """Ask, and judge what comes."""
        self.count(verb, f"{kind} asked")
        try:
            proposal = work()
        except NoAnswerAcceptedError as error:
            self.count(verb, f"{kind} refused")
            self.reasons.setdefault(verb, Counter()).update(refusal.code for refusal in error.refusals or _codes(error))
            if kind == "model":
                print(
                    f"  refused: {verb} {subject.name}:",
                    *(line[:200] for line in error.problems),
                    sep="\n    ",
                    flush=True,
                )
            if kind == "right":
                print(f"  right answer refused: {verb} {subject.name}: {error.problems[-1][:160]}", flush=True)
            return
        except MftError as error:
            self.count(verb, f"{kind} cannot")
            print(f"  cannot: {verb} {subject.name}: {error.problems[0][:160]}", flush=True)
            return
        self.count(verb, f"{kind} accepted")
        if kind == "model":
            self.reasons.setdefault(verb, Counter()).update(refusal.code for refusal in proposal.refusals)
            said = [*(f"refused: {one.line[:200]}" for one in proposal.refusals), proposal.patch or proposal.text]
            shown = "\n".join([*said, *filter(None, (proposal.score, *proposal.notes))])
            print(f"  accepted: {verb} {subject.name}:", *shown.splitlines(), sep="\n    ", flush=True)
        if kind == "lie" or not self.holds(proposal, subject, bugs):
            self.wrong.append(f"{verb} {subject.name} ({kind})")

    def show(self, kinds: Sequence[str]) -> None:
        """Print the table."""
        print(f"\n| verb | {' | '.join(f'{k} asked | accepted' for k in kinds)} | cannot | refused, by reason |")
        print(f"|---|{'---:|---:|' * len(kinds)}---:|---|")
        for verb, row in self.rows.items():
            cells = " | ".join(f"{row[f'{k} asked']} | {row[f'{k} accepted']}" for k in kinds)
            cannot = sum(row[f"{kind} cannot"] for kind in kinds)
            reasons = ", ".join(f"{name} {count}" for name, count in self.reasons.get(verb, Counter()).most_common())
            print(f"| {verb} | {cells} | {cannot} | {reasons} |")
        print(
            f"\naccepted results that do not hold: {len(self.wrong)}{''.join(f'{chr(10)}  {one}' for one in self.wrong)}"
        )


def _codes(error: NoAnswerAcceptedError) -> list[Any]:
    return [type("Code", (), {"code": line.split(": ")[1]}) for line in error.problems]


def scripted(folder: Path, names: Sequence[str], table: Table) -> None:
    """Right answers by rule for every function, then one lie for each verb."""
    model = Scripted()
    chosen = random.Random(0)
    with Assistant(model, folder, rounds=1, mutants=MUTANTS) as assistant:
        for subject in subjects(folder, names):
            function = find_function(assistant.folder.read(subject.file), subject.short)
            bugs = tuple(mutants(function, MUTANTS))
            for verb in LIES:
                for kind in ("right", "lie"):
                    ask = asked(assistant, model, subject, function, bugs, verb, kind, chosen)
                    table.run(verb, subject, ask, bugs, kind)
            print(f"{subject.name}: {len(bugs)} mutants", flush=True)


def asked(
    assistant: Assistant,
    model: Scripted,
    subject: Subject,
    function: FunctionText,
    bugs: tuple[str, ...],
    verb: str,
    kind: str,
    chosen: random.Random,
) -> Callable[[], Proposal]:
    """One call of a verb, with the model's answers set."""
    bug, lie = _bug(function, subject, bugs), chosen.choice(LIES[verb])
    diff, row = next(
        (diff, number)
        for text in (*bugs, f"{function.file.text}\n")  # some bugs only take lines away
        for diff in [make_patch(subject.file, function.file.text, text)]
        for number, line in enumerate(diff.split("\n"))
        if line.startswith("+") and number > 2
    )
    at = _row_in_new(diff, row)
    last = function.text.rstrip("\n").split("\n")[-1]
    half = len(function.indent) + len(last) // 2
    right: dict[str, list[str]] = {
        "comment": [fenced(commented(function))],
        "test": [right_tests(subject)],
        "optimise": [right_tests(subject), fenced(same_work(function))],
        "fix": [
            right_tests(subject, subject.calls[:1]),
            right_tests(subject, subject.calls[1:]),
            fenced(function.text),
        ],
        "complete": ["a"],
        "explain": [f"`{subject.short}` returns a value."],
        "review": [f"{subject.file}:{at}: this differs from the standard library"],
    }
    told = right[verb]
    model.answers = list(told)
    if kind == "lie":
        model.answers = [*told[:-1], lie(subject, function, bug)]
    if verb == "review":
        return lambda: assistant.review(diff)
    if verb == "complete":
        model.answers = [last[half - len(function.indent) :]] if kind == "right" else model.answers
        gap, line = half_of_last_line(function)
        (assistant.folder.root / "gap.py").write_text(gap)
        return lambda: assistant.complete(f"gap.py:{line}", block=False)
    if verb == "fix":
        (assistant.folder.root / "broken.py").write_text(function.placed(broken(function, subject.calls[0][0])))
        log = "RuntimeError: broken"
        return lambda: assistant.fix(f"broken.py:{subject.short}", log)
    return lambda: getattr(assistant, verb)(subject.place)


def half_of_last_line(function: FunctionText) -> tuple[str, int]:
    """The file with half of the function's last line, and this line's number."""
    *lines, last = function.text.rstrip("\n").split("\n")
    return function.placed("\n".join([*lines, last[: len(last) // 2]]) + "\n"), function.first + len(lines) + 1


@cache
def _bug(function: FunctionText, subject: Subject, bugs: tuple[str, ...]) -> str:
    """A mutant that the calls find, found without the assistant; prose where they find none."""
    tests = right_tests(subject).split("\n", 1)[1].rsplit("\n", 1)[0]
    return next((_only(function, one) for one in bugs if not tests_pass(one, tests)), "no bug is found by the calls")


def _only(function: FunctionText, whole: str) -> str:
    """The function of a mutant of its file."""
    node = next(one for one in ast.parse(whole).body if getattr(one, "name", "") == function.name)
    return ast.unparse(node) + "\n"


def _row_in_new(diff: str, row: int) -> int:
    """The line of the new file that a line of a diff stands for."""
    lines = diff.split("\n")
    head = max(number for number in range(row) if lines[number].startswith("@@"))
    start = int(lines[head].split("+")[1].split(",")[0].split(" ")[0])
    return start + sum(not line.startswith("-") for line in lines[head + 1 : row])


def real(folder: Path, chosen: Sequence[str], table: Table, name: str) -> None:
    """A real model, in this process."""
    from mftcoder.app.serving.assist import open_assistant
    from mftcoder.models.conversion.demo_model import smollm2_folder

    model = str(smollm2_folder()) if name == "smollm2" else name
    with open_assistant(model=model, folder=folder, max_tokens=400, mutants=MUTANTS) as assistant:
        for subject in subjects(folder, chosen):
            function = find_function(assistant.folder.read(subject.file), subject.short)
            bugs = tuple(mutants(function, MUTANTS))
            works: dict[str, Callable[[], Proposal]] = {
                verb: (lambda verb=verb, place=subject.place: getattr(assistant, verb)(place))  # type: ignore[misc]
                for verb in ("comment", "explain", "test", "optimise")
            }
            gap, place = half_of_last_line(function)
            (folder / "gap.py").write_text(gap)
            works["complete"] = lambda place=place: assistant.complete(f"gap.py:{place}", block=False)  # type: ignore[misc]
            (folder / "broken.py").write_text(function.placed(broken(function, subject.calls[0][0])))
            fixed = f"broken.py:{subject.short}"
            works["fix"] = lambda fixed=fixed: assistant.fix(fixed, "RuntimeError: broken")  # type: ignore[misc]
            diff = make_patch(subject.file, function.file.text, bugs[0])
            works["review"] = lambda diff=diff: assistant.review(diff)  # type: ignore[misc]
            for verb, work in works.items():
                table.run(verb, subject, work, bugs, "model")
            print(f"{subject.name}: {len(bugs)} mutants", flush=True)


def main() -> None:
    """Run the scripted model, or a real one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="smollm2, or a folder that `mft serve` takes (default: the scripted model)")
    parser.add_argument("--functions", type=int, default=len(CALLS), help="the first N functions")
    parser.add_argument("--only", nargs="+", choices=list(CALLS), metavar="NAME", help="these functions")
    options = parser.parse_args()
    chosen = options.only or list(CALLS)[: options.functions]
    table = Table(holds)
    with tempfile.TemporaryDirectory(prefix="mftcoder-assist-") as name:
        if options.model:
            real(Path(name), chosen, table, options.model)
        else:
            scripted(Path(name), chosen, table)
    table.show(("model",) if options.model else ("right", "lie"))
    sys.exit(1 if table.wrong else 0)


if __name__ == "__main__":
    main()
