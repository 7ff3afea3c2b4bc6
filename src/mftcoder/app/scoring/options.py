"""The options of `generate` and `evaluate`, each declared once: verbs take them as keywords, commands as flags.

Imports nothing heavy, so that `mft --help` stays fast.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mftcoder.errors import ConfigError
from mftcoder.registry import did_you_mean

if TYPE_CHECKING:
    from mftcoder.benchmarks.problem import Asking, PromptMode
    from mftcoder.generation.engine import Sampling


LARGEST = 2**31 - 1
_SAMPLING_BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0, LARGEST),
    "top_p": (1e-9, 1),
    "seed": (-(2**63), 2**63 - 1),
}


@dataclass(frozen=True)
class GenerateOptions:
    """How a model answers benchmarks."""

    tasks: tuple[str, ...] = ()
    """Benchmarks or groups of them; with a preset its own, or some of them."""
    preset: str | None = None
    """Published settings by name; sets mode, prefix and suffix of each task."""
    data_dir: Path | None = None
    """Folder with the benchmarks' data; None downloads it from the Hub."""
    out: Path | None = None
    """Output directory; None: the current one, with a preset generations_NAME in it."""
    name: str | None = None
    """Name of the model in file names; None: from its folder."""
    mode: "PromptMode" = "completion"
    """completion continues the code, instruct puts an instruction before it, chat sends a user message."""
    prefix: str = ""
    """Text before each prompt."""
    suffix: str = ""
    """Text after each prompt."""
    system: str = ""
    """System message of mode chat or of a preset."""
    template: str | None = None
    """Chat template of mode chat; None: the run's, else the tokenizer's own."""
    n_samples: int = 1
    """Samples per problem."""
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    """Nucleus sampling probability."""
    max_new_tokens: int = 512
    """Most tokens per sample."""
    max_length: int | None = None
    """Most tokens of prompt and answer together."""
    end_token: str | None = None
    """A token that ends an answer, besides the model's own EOS tokens."""
    seed: int = 0
    """Seed of sampling."""
    engine: str = "auto"
    """transformers, openvino, vllm, or auto."""
    batch_size: int | None = None
    """Samples generated at the same time; None: the engine's own."""
    limit: int | None = None
    """Take only the first problems of each benchmark."""
    checkpoint: str = "best"
    """Checkpoint of a run folder: best, latest or a name."""
    dtype: str | None = None
    """bfloat16 or float32; None: the model's own."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:1."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    as_trained: bool = False
    """Keep a QLoRA run's base in its 4 or 8 bits instead of merging."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", benchmark_names(self.tasks))
        counts = ("n_samples", "max_new_tokens", "max_length", "batch_size", "limit")
        _check_numbers(self, dict.fromkeys(counts, (1, LARGEST)) | _SAMPLING_BOUNDS)
        _check_choice("mode", self.mode, ("completion", "instruct", "chat"))
        _make_paths(self, "data_dir", "out")

    @property
    def sampling(self) -> "Sampling":
        from mftcoder.generation.engine import Sampling

        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.seed, self.max_length)

    def asking(self, task: str) -> "Asking":
        """How the prompts of this benchmark are built."""
        from mftcoder.benchmarks.catalogue import PRESETS
        from mftcoder.benchmarks.problem import Asking

        if self.preset:
            return PRESETS[self.preset].asking(task, self.system)
        return Asking(self.mode, self.prefix, self.suffix)


_SET_BY_PRESET = ("mode", "prefix", "suffix", "template", "n_samples", "temperature", "top_p", "max_new_tokens")


def preset_options(name: str, given: Mapping[str, Any]) -> GenerateOptions:
    """The options of preset `name` together with the `given` ones, which may set everything that the preset leaves open."""
    from mftcoder.benchmarks.catalogue import PRESETS, expand

    if name not in PRESETS:
        raise ConfigError(f"--preset: unknown preset '{name}'.{did_you_mean(name, PRESETS)}")
    preset = PRESETS[name]
    tasks = expand(given.get("tasks") or preset.tasks)
    problems = [
        f"--{key.replace('_', '-')}: --preset {name} sets it; leave one out" for key in _SET_BY_PRESET if key in given
    ]
    problems += [f"--task {task}: is none of --preset {name}" for task in tasks if task not in preset.tasks]
    if problems:
        raise ConfigError(*problems)
    chosen = {"max_length": preset.max_length, "end_token": preset.end_token, "dtype": preset.dtype, **given}
    chosen |= {"tasks": tuple(tasks), "preset": name, "max_new_tokens": chosen["max_length"]}
    return GenerateOptions(**chosen)


@dataclass(frozen=True)
class EvaluateOptions:
    """How answers are run and scored."""

    task: str | None = None
    """Benchmark; None: from the file's name."""
    data_dir: Path | None = None
    """Folder with the benchmarks' data; None downloads it from the Hub."""
    out: Path | None = None
    """Output directory for metrics and results; None: beside each generations file."""
    k: tuple[int, ...] = (1,)
    """pass@k for each of these k."""
    workers: int | None = None
    """Programs run at the same time; None: one per core."""
    timeout: float | None = None
    """Seconds per program; None: the benchmark's own."""
    memory_mb: int = 1024
    """Megabytes per program."""
    sandbox: str = "auto"
    """container, namespaces, process, or auto."""
    limit: int | None = None
    """Take only the first problems of each benchmark."""
    imports: Literal["none", "reference"] | None = None
    """Imports before a Python answer; None: the benchmark's own."""

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("workers", "limit"), (1, LARGEST))
        _check_numbers(self, counts | {"timeout": (1e-9, LARGEST), "memory_mb": (64, LARGEST)})
        _check_choice("imports", self.imports, (None, "none", "reference"))
        given = self.k if isinstance(self.k, list | tuple) else (self.k,)
        if not given or not all(isinstance(k, int) and k > 0 for k in given):
            raise ConfigError(f"k: must be one or more whole numbers of at least 1, not {self.k!r}")
        k = tuple(sorted(set(given)))
        object.__setattr__(self, "k", k)
        _make_paths(self, "data_dir", "out")


def benchmark_names(tasks: Any) -> tuple[str, ...]:
    """One name or several, as a tuple."""
    names = (tasks,) if isinstance(tasks, str) else tasks
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"tasks: give the name of a benchmark or a list of names, not {tasks!r}")
    return tuple(names)


def check_names(kind: type, given: Mapping[str, Any]) -> None:
    """ConfigError for an option that `kind` does not have."""
    names = [field.name for field in fields(kind)]
    if unknown := [f"{name}: unknown option.{did_you_mean(name, names)}" for name in given if name not in names]:
        raise ConfigError(*unknown)


def _check_numbers(options: Any, bounds: Mapping[str, tuple[float, float]]) -> None:
    """ConfigError for numbers that the command line refuses too. The field's type says whether it is whole, and whether None is allowed."""
    problems = []
    for name, kind in ((field.name, str(field.type)) for field in fields(options) if field.name in bounds):
        value, (low, high) = getattr(options, name), bounds[name]
        fits = isinstance(value, int | float if "float" in kind else int) and low <= value <= high
        if not fits and not (value is None and "None" in kind):
            what = "a number" if "float" in kind else "a whole number"
            problems.append(f"{name}: must be {what} from {low:g} to {high:g}, not {value!r}")
    if problems:
        raise ConfigError(*problems)


def _check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    if value not in known:
        raise ConfigError(f"{name}: must be one of {', '.join(map(str, known))}, not {value!r}")


def _make_paths(options: object, *names: str) -> None:
    """Turn strings in these fields into paths."""
    for name in names:
        value = getattr(options, name)
        if value is not None:
            object.__setattr__(options, name, Path(value))
