"""The prompts of the methods: text files with Jinja placeholders, ours or the user's, checked before the first request.

`mft data synthesize prompts FOLDER` copies ours out; `--prompts FOLDER` takes the files of a method that stand there.
"""

from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mftcoder.cache import key
from mftcoder.errors import ConfigError
from mftcoder.jsonl import write_text
from mftcoder.registry import did_you_mean

Placeholders = tuple[frozenset[str], frozenset[str]]


def _of(needed: str, optional: str = "") -> Placeholders:
    return frozenset(needed.split()), frozenset(optional.split())


WAYS = ("add_requirement", "rarer_requirement", "more_steps", "wrong_code", "complexity")
"""The five ways of Evol-Instruct for code that make a question harder (Luo et al., WizardCoder, arXiv 2306.08568)."""
PROMPTS: Mapping[str, Mapping[str, Placeholders]] = {
    "exercises": {
        "task": _of("topic", "language"),
        "sharpen": _of("task", "language"),
        "questions": _of("task", "count language"),
        "answer": _of("question", "language"),
    },
    "evol": {
        "rewrite": _of("way question"),
        **{way: _of("", "question") for way in WAYS},
        "judge": _of("first second"),
        "answer": _of("question"),
    },
    "oss": {"problem": _of("snippet", "language")},
    "tests": {"tests": _of("code", "question count"), "answer": _of("question names")},
    "repair": {"answer": _of("question"), "repair": _of("code error", "question tests")},
}
"""Method -> prompt -> the placeholders that it must have, and those that it may have."""


def packaged(method: str, name: str) -> Traversable:
    """Our file of a prompt."""
    return files("mftcoder.curation.synthesis") / "prompt_files" / method / f"{name}.md"


class Prompts:
    """The prompts of one method. ConfigError lists every problem of the user's files."""

    def __init__(self, method: str, folder: Path | None = None):
        self.method = method
        texts = {name: packaged(method, name).read_text(encoding="utf-8") for name in PROMPTS[method]}
        texts |= _texts_of_user(method, folder) if folder else {}
        self.fingerprints = {name: key(text) for name, text in texts.items()}
        self._environment = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
        problems = [problem for name, text in texts.items() for problem in self._problems(name, text, folder)]
        if problems:
            raise ConfigError(*problems)
        self._templates = {name: self._environment.from_string(text) for name, text in texts.items()}

    def render(self, name: str, **values: object) -> str:
        """The text of a prompt, with values for its placeholders."""
        return self._templates[name].render(**values).strip()

    def _problems(self, name: str, text: str, folder: Path | None) -> Iterator[str]:
        where = f"{folder}/{self.method}/{name}.md"
        needed, optional = PROMPTS[self.method][name]
        try:
            used = meta.find_undeclared_variables(self._environment.parse(text))
        except jinja2.TemplateSyntaxError as error:
            yield f"{where}:{error.lineno}: {error.message}"
            return
        known = needed | optional
        yield from (f"{where}: unknown placeholder '{one}'.{did_you_mean(one, known)}" for one in sorted(used - known))
        yield from (f"{where}: the placeholder {{{{ {one} }}}} is missing" for one in sorted(needed - used))
        if not text.strip():
            yield f"{where}: is empty"


def _texts_of_user(method: str, folder: Path) -> dict[str, str]:
    place = folder / method
    found = sorted(place.glob("*.md")) if place.is_dir() else []
    problems = [
        f"{path}: unknown prompt.{did_you_mean(path.stem, PROMPTS[method])}"
        for path in found
        if path.stem not in PROMPTS[method]
    ]
    if not found:
        problems.append(f"{place}: holds no prompt. Copy ours with: mft data synthesize prompts {folder}")
    if problems:
        raise ConfigError(*problems)
    try:
        return {path.stem: path.read_text(encoding="utf-8-sig") for path in found}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place}: cannot be read: {error}") from error


def copy_prompts(folder: Path) -> list[Path]:
    """Write all of our prompts into `folder`. ConfigError if a file would be replaced."""
    targets = {folder / method / f"{name}.md": packaged(method, name) for method in PROMPTS for name in PROMPTS[method]}
    there = [str(path) for path in targets if path.exists()]
    if there:
        raise ConfigError.collect(f"{path}: is there already. Choose another folder, or remove it" for path in there)
    for path, source in targets.items():
        write_text(path, source.read_text(encoding="utf-8"))
    return list(targets)
