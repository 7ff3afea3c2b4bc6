"""Published settings for generation, by name: the tasks, the prompt format of each, and the settings of all.

`qwen-competition` is launch_generate_codeqwen.sh of the Qwen (Code) contest (codefuse-ai/MFTCoder, branch codeqwen_competition). Its
harness puts a line break after every prompt, asks HumanEvalPack in plain text and MBPP in ChatML, and counts the prompt's tokens in
the limit.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mftcoder.benchmarks.catalogue import GROUPS, all_tasks
from mftcoder.benchmarks.problem import Asking


@dataclass(frozen=True)
class Preset:
    """Greedy decoding, one sample per problem, and these settings."""

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
