"""Every benchmark by name: `load("humaneval", Path("data"))` is a Benchmark, `tasks()` lists the names; and published settings by name.

Each family has a table of its tasks; `registry.BENCHMARKS` lists the tables.
"""

import difflib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mftcoder.benchmarks.problem import Asking, Benchmark, Task
from mftcoder.errors import BenchmarkError
from mftcoder.registry import BENCHMARKS, did_you_mean


def all_tasks() -> dict[str, Task]:
    """Task name -> task, of all families."""
    found: dict[str, Task] = {}
    for family in BENCHMARKS.names():
        table: Mapping[str, Task] = BENCHMARKS.load(family)
        found.update(table)
    return found


def tasks() -> list[str]:
    """All task names, sorted."""
    return sorted(all_tasks())


def load(task: str, data_dir: Path | None = None, limit: int | None = None) -> Benchmark:
    """The benchmark `task` with its first `limit` problems (None: all). BenchmarkError for an unknown name or missing data."""
    known = all_tasks()
    if task not in known:
        close = difflib.get_close_matches(task, known, n=1)
        hint = did_you_mean(task, known) if close else " `mft benchmarks` lists all."
        raise BenchmarkError(f"unknown task '{task}'.{hint}")
    if data_dir is not None and not data_dir.is_dir():
        raise BenchmarkError(f"{data_dir}: no such folder")
    return known[task].load(data_dir).limited(limit)


def expand(names: Iterable[str]) -> list[str]:
    """Task names, with groups replaced by their tasks; without duplicates, in order."""
    expanded = [task for name in names for task in GROUPS.get(name, (name,))]
    return list(dict.fromkeys(expanded))


_LANGUAGES = ("python", "java", "js", "cpp", "go", "rust")
GROUPS: Mapping[str, tuple[str, ...]] = {
    "qwen-competition": (
        *(f"humanevalsynthesize-{language}" for language in _LANGUAGES),
        *(f"humanevalfixtests-{language}" for language in _LANGUAGES),
        "mbpp",
    ),
    "exam": ("exam-complete", "exam-write", "exam-repair", "exam-test"),
}
"""Group name -> tasks. qwen-competition: 13 tasks, 2,468 problems. exam: made of your own code by `mft data mine --exam`."""


@dataclass(frozen=True)
class Preset:
    """Published settings for generation: greedy decoding, one sample per problem, and these."""

    name: str
    tasks: tuple[str, ...]
    asking: Callable[[str, str], Asking]  # from the task and the system message
    max_length: int  # tokens of prompt and completion together
    end_token: str
    dtype: str

    def lines(self, system: str, **chosen: object) -> Iterator[str]:
        """The preset as command line options, for the console. `chosen` are the options that all its tasks share."""
        yield f"preset {self.name}: {len(self.tasks)} tasks, {sum(all_tasks()[task].problems for task in self.tasks):,} problems"
        groups: dict[str, list[str]] = {}
        for task in self.tasks:
            groups.setdefault(_options(self.asking(task, system)), []).append(task)
        for options, tasks in groups.items():
            yield f"  {_shared(tasks)}: {options}"
        shared = " ".join(f"--{name.replace('_', '-')} {_quoted(str(value))}" for name, value in chosen.items())
        yield f"  all: {shared} --temperature 0 --n-samples 1"


def _contest(task: str, system: str) -> Asking:
    """As launch_generate_codeqwen.sh of the Qwen (Code) contest asks (codefuse-ai/MFTCoder, branch codeqwen_competition).

    Its harness puts a line break after every prompt, asks HumanEvalPack in plain text and MBPP in ChatML, and counts the prompt's tokens
    in the limit.
    """
    if task != "mbpp":
        return Asking("instruct", suffix="\n")
    prefix = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n"
    return Asking("instruct", prefix, "\n<|im_end|>\n<|im_start|>assistant")


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (Preset("qwen-competition", GROUPS["qwen-competition"], _contest, 2000, "<|im_end|>", "bfloat16"),)
}


def _options(asking: Asking) -> str:
    texts = {"--prefix": asking.prefix, "--suffix": asking.suffix}
    return " ".join([f"--mode {asking.mode}", *(f"{name} {_quoted(text)}" for name, text in texts.items() if text)])


def _shared(tasks: list[str]) -> str:
    """`humanevalsynthesize-*, humanevalfixtests-*` for tasks that differ only in the language."""
    return ", ".join(dict.fromkeys(f"{task.partition('-')[0]}-*" if "-" in task else task for task in tasks))


def _quoted(text: str) -> str:
    """Quoted for bash: `$'a\\nb'`."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    return f"$'{escaped}'" if escaped != text else shlex.quote(text)
