"""`mft generate`: a model's answers to benchmarks, all tasks in one run, resumable to the sample.

The model is a model folder, a Hub id, a .gguf file or a run folder. Each task is written as `generations_{task}_{model}.json`
(a list of problems of lists of samples), `settings_{task}_{model}.json` beside it, and the journal `completions_...jsonl`. Where
a launcher started several processes, each generates a part of the samples, and rank 0 merges them.
"""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mftcoder import __version__
from mftcoder.app.scoring.engine_choice import NotCompiledError, engine_name, open_engine
from mftcoder.app.scoring.options import GenerateOptions, benchmark_names, check_names, preset_options
from mftcoder.benchmarks.catalogue import PRESETS, Preset, expand
from mftcoder.benchmarks.catalogue import load as load_benchmark
from mftcoder.benchmarks.families.humanevalpack import described_by, with_descriptions
from mftcoder.benchmarks.problem import Asking, Benchmark
from mftcoder.benchmarks.submission import FOLDER_PREFIX, model_of_folder
from mftcoder.config.data import DataConfig
from mftcoder.config.schema import BackendConfig
from mftcoder.data.records.conversation import Message
from mftcoder.data.rendering.templates import Template, load_template
from mftcoder.errors import ConfigError, GenerationError, Interrupted
from mftcoder.generation.engine import Completion, Prompt
from mftcoder.generation.journal import GenerationJournal
from mftcoder.jsonl import has_settings, write_json
from mftcoder.log import OnProgress, no_progress, say, warn
from mftcoder.models.export.fingerprint import fingerprint
from mftcoder.models.export.source import ModelSource, find_source, loaded_source
from mftcoder.training.backends.process_group import Group, OneProcess, ProcessGroup, launched_processes

_PATIENCE = 7 * 24 * 3600  # seconds that a process waits for the others


@dataclass(frozen=True)
class _Task:
    """One benchmark with its prompts and its journal."""

    benchmark: Benchmark
    asking: Asking
    journal: GenerationJournal
    settings: dict[str, Any]
    prompts: tuple[Prompt, ...]
    path: Path

    def waiting(self, rank: int, processes: int) -> list[Prompt]:
        """This process's prompts without an answer."""
        mine = self.prompts[rank::processes]
        return [prompt for prompt in mine if (prompt.problem_id, prompt.sample) not in self.journal.answers]

    def write(self) -> Path:
        """Write the generations file, in the order of the problems, and the settings file."""
        answers: dict[str, list[str]] = {}
        for prompt in self.prompts:
            answers.setdefault(prompt.problem_id, []).append(self.journal.answers[prompt.problem_id, prompt.sample])
        write_json(self.path.with_name(self.path.name.replace("generations_", "settings_", 1)), self.settings)
        write_json(self.path, list(answers.values()))
        return self.path


def generate(
    model: Any,
    tasks: str | Sequence[str] = (),
    *,
    tokenizer: Any = None,
    preset: str | None = None,
    on_progress: OnProgress = no_progress,
    **options: Any,
) -> list[Path]:
    """Write a model's answers to `tasks` (benchmarks or groups of them), and return the paths of the generations files.

    `model` is a model folder, a Hub id, a .gguf file, a run folder, or a model of transformers that is loaded already, with its
    `tokenizer`. `options` are the fields of GenerateOptions. Other ranks than rank 0 return no paths. After Interrupted, finished samples are kept.
    """
    named = benchmark_names(tasks)
    check_names(GenerateOptions, options)
    chosen = preset_options(preset, {**options, "tasks": named}) if preset else GenerateOptions(named, **options)
    _check_sampling(chosen)
    with ExitStack() as stack:
        if isinstance(model, str | Path):
            if tokenizer is not None:
                raise ConfigError("tokenizer: is for a model that is loaded already; a folder has its own")
            source = find_source(str(model), checkpoint=chosen.checkpoint, trust_remote_code=chosen.trust_remote_code)
        else:
            _check_loaded(tokenizer, chosen)
            source = stack.enter_context(_loaded(model, tokenizer, str(chosen.name)))
        return _generate_on_all_ranks(source, chosen, on_progress)


def _check_loaded(tokenizer: Any, options: GenerateOptions) -> None:
    """ConfigError for a loaded model without tokenizer or name, and for options that only act while a model is loaded."""
    problems = [] if options.name else ["name: a model that is loaded needs one, for the names of the files"]
    if tokenizer is None:
        problems.append("tokenizer: a model that is loaded needs its tokenizer")
    late = ("checkpoint", "dtype", "device", "trust_remote_code", "as_trained")
    usual = GenerateOptions()
    problems += [
        f"{name}: comes too late for a model that is loaded"
        for name in late
        if getattr(options, name) != getattr(usual, name)
    ]
    if options.engine not in ("auto", "transformers"):
        problems.append(f"engine: {options.engine} loads its model itself; give a folder")
    if problems:
        raise ConfigError(*problems)


@contextmanager
def _loaded(model: Any, tokenizer: Any, name: str) -> Iterator[ModelSource]:
    """The source of a loaded model. The model is in evaluation mode inside the block."""
    was_training = model.training
    model.eval()
    try:
        with TemporaryDirectory() as folder:
            yield loaded_source(model, tokenizer, name, Path(folder))
    finally:
        model.train(was_training)


def _check_sampling(options: GenerateOptions) -> None:
    """ConfigError without a benchmark, or for sampling settings that greedy decoding ignores."""
    problems = []
    if not options.tasks:
        problems.append("--task: no benchmark is named, and no --preset")
    if options.n_samples > 1 and options.temperature == 0:
        problems.append("--n-samples above 1 needs a --temperature above 0: greedy answers are all the same")
    if options.top_p < 1 and options.temperature == 0:
        problems.append("--top-p needs a --temperature above 0: greedy answers do not follow it")
    if problems:
        raise ConfigError(*problems)


def _generate_on_all_ranks(source: ModelSource, options: GenerateOptions, on_progress: OnProgress) -> list[Path]:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", options.device):
        raise ConfigError(f"--device {options.device}: is none. Give auto, cpu, cuda or cuda:1")
    if launched_processes() == 1:
        return _generate(source, options, OneProcess(BackendConfig(device="cpu")), options.device, on_progress)
    kind = "auto" if options.device == "auto" else "cuda" if options.device.startswith("cuda") else "cpu"
    group = ProcessGroup(BackendConfig(device=kind, timeout_seconds=_PATIENCE))
    with group.joined():
        return _generate(source, options, group, str(group.device), on_progress)


def _generate(
    source: ModelSource, options: GenerateOptions, group: Group, device: str, on_progress: OnProgress
) -> list[Path]:
    """The work of one rank, on this device."""
    benchmarks = [load_benchmark(task, options.data_dir, options.limit) for task in expand(options.tasks)]
    if source.loaded is not None:
        device = str(source.loaded.device)
    _check_effect(source, options)
    wanted = options.engine if source.loaded is None else "transformers"
    engine = engine_name(wanted, source, device=options.device, as_trained=options.as_trained, dtype=options.dtype)
    template = _template(source, options) if options.mode == "chat" else None
    if options.engine == "auto" and any(_begun(benchmark, source, template, options) for benchmark in benchmarks):
        engine = "transformers"
    if options.preset:
        _tell_preset(PRESETS[options.preset], source, options)
    write = partial(_write_all, benchmarks, source, template, options, group, device, on_progress)
    try:
        return write(engine)
    except NotCompiledError as error:
        if options.engine != "auto":
            raise
        error.tell_other_engine()
    return write("transformers")  # after the block, whose error keeps the other copy of the model in memory


def _write_all(
    benchmarks: Sequence[Benchmark],
    source: ModelSource,
    template: Template | None,
    options: GenerateOptions,
    group: Group,
    device: str,
    on_progress: OnProgress,
    engine: str,
) -> list[Path]:
    """The answers of this rank, written by `engine`, and on rank 0 the files of all. NotCompiledError before the first answer."""
    rank, processes = group.rank, group.world_size
    with ExitStack() as stack:
        tasks = [_open(benchmark, source, template, engine, options, group, stack) for benchmark in benchmarks]
        total = sum(len(task.prompts[rank::processes]) for task in tasks)
        waiting = [prompt for task in tasks for prompt in task.waiting(rank, processes)]
        try:
            if len(waiting) < total:
                say(f"{total - len(waiting):,} of {total:,} samples are already done")
            if waiting:  # otherwise no model needs to be loaded
                writer = open_engine(
                    engine,
                    source,
                    options.sampling,
                    template,
                    device=_device(device),
                    dtype=source.dtype(options.dtype, float16=engine == "openvino"),
                    batch_size=options.batch_size,
                    as_trained=options.as_trained,
                    end_token=options.end_token,
                )
                _answer(tasks, _with_progress(writer.generate(waiting), total, len(waiting), on_progress))
        except KeyboardInterrupt as stop:
            raise Interrupted("What is done is kept; the same command goes on from there.") from stop
        except torch.OutOfMemoryError as error:
            raise GenerationError(
                "--batch-size: so many samples at once do not fit into the device's memory. What is done is kept; type the same command "
                "with a smaller one"
            ) from error
        group.all_gather("done")  # the others have written their journals
        if rank:
            return []
        files = [_write(task) for task in tasks]
    if options.preset and len(files) == len(PRESETS[options.preset].tasks) and options.limit is None:
        say(f"next: mft submit {files[0].parent}")
    return files


def _check_effect(source: ModelSource, options: GenerateOptions) -> None:
    """ConfigError for options that would change nothing."""
    no_chat = options.mode != "chat"
    idle = {
        "--system: only --mode chat and a preset have a system message": options.system
        and no_chat
        and not options.preset,
        "--template: only --mode chat has a template": options.template is not None and no_chat,
        f"--checkpoint {options.checkpoint}: {source.name} is no run folder": options.checkpoint != "best"
        and not source.run,
    }
    if problems := [problem for problem, is_idle in idle.items() if is_idle]:
        raise ConfigError(*problems)


def _tell_preset(preset: Preset, source: ModelSource, options: GenerateOptions) -> None:
    """Log the settings of the preset. ConfigError if a submission cannot have this model's name."""
    name = _file_name(source, options)
    if model_of_folder(f"{FOLDER_PREFIX}{name}") is None:
        raise ConfigError(
            f"--name: a submission cannot be named '{name}'. Give letters, digits, dots, dashes and lines"
        )
    chosen = {"max_length": options.max_length, "end_token": options.end_token, "dtype": options.dtype}
    for line in preset.lines(options.system, **chosen):
        say(line)


def _device(name: str) -> str:
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _write(task: _Task) -> Path:
    task.journal.merge_others()
    path = task.write()
    say(f"wrote {path}")
    return path


def _template(source: ModelSource, options: GenerateOptions) -> Template:
    """The template in the options, else the one of the run, else the tokenizer's own."""
    data = source.run.data if source.run else DataConfig()
    if options.template:
        data = DataConfig(chat_template=options.template)
    try:
        return load_template(data, source.tokenizer)
    except ConfigError as error:
        raise ConfigError(*(f"--mode chat: {problem} Or give --template" for problem in error.problems)) from error


def _open(
    benchmark: Benchmark,
    source: ModelSource,
    template: Template | None,
    engine: str,
    options: GenerateOptions,
    group: Group,
    stack: ExitStack,
) -> _Task:
    name, asking = _file_name(source, options), options.asking(benchmark.name)
    out = options.out or (Path(f"generations_{name}") if options.preset else Path())
    if describe := described_by(benchmark.name):
        benchmark = with_descriptions(benchmark, out / f"generations_{describe}_{name}.json")
    # Paths and times of files differ between machines, so one rank tells all.
    settings = group.run_on_rank0(lambda: _settings(benchmark, source, template, engine, options))
    out.mkdir(parents=True, exist_ok=True)
    journal = stack.enter_context(GenerationJournal(_journal_path(benchmark, source, options), settings, group.rank))
    prompts = tuple(_prompts(benchmark, asking, template, options))
    return _Task(benchmark, asking, journal, settings, prompts, out / f"generations_{benchmark.name}_{name}.json")


def _begun(benchmark: Benchmark, source: ModelSource, template: Template | None, options: GenerateOptions) -> bool:
    """Whether the transformers engine has begun these answers, before another engine was installed."""
    path = _journal_path(benchmark, source, options)
    return path.is_file() and has_settings(path, _settings(benchmark, source, template, "transformers", options))


def _journal_path(benchmark: Benchmark, source: ModelSource, options: GenerateOptions) -> Path:
    name = _file_name(source, options)
    out = options.out or (Path(f"generations_{name}") if options.preset else Path())
    return out / f"completions_{benchmark.name}_{name}.jsonl"


def _file_name(source: ModelSource, options: GenerateOptions) -> str:
    return re.sub(r"[^\w.+-]+", "-", options.name or source.name)


def _settings(
    benchmark: Benchmark, source: ModelSource, template: Template | None, engine: str, options: GenerateOptions
) -> dict[str, Any]:
    """Everything that shapes the answers. A journal with other settings is not continued."""
    asking = options.asking(benchmark.name)
    return {
        "task": benchmark.name,
        "data": benchmark.source,
        "model": str(source.weights) if source.loaded is None else source.name,
        "weights": fingerprint(source),
        "dtype": str(source.dtype(options.dtype, float16=engine == "openvino")).removeprefix("torch."),
        **({"base": source.quantization} if options.as_trained else {}),
        "engine": engine,
        "mode": asking.mode,
        "prefix": asking.prefix,
        "suffix": asking.suffix,
        "system": options.system,
        "end_token": options.end_token,
        "template": template.as_jinja() if template else None,
        "tokenizer": source.tokenizer.fingerprint,
        "sampling": {name: getattr(options, name) for name in _SAMPLING_OPTIONS},
        "n_samples": options.n_samples,
        "mftcoder": __version__,
    }


_SAMPLING_OPTIONS = ("max_new_tokens", "temperature", "top_p", "seed", "max_length")


def _prompts(
    benchmark: Benchmark, asking: Asking, template: Template | None, options: GenerateOptions
) -> Iterator[Prompt]:
    for problem in benchmark.problems:
        text = benchmark.prompt(problem, asking)
        if template:
            system = [Message("system", options.system, False)] if options.system else []
            text = template.render_prompt([*system, Message("user", text, False)])
        stop, is_whole = benchmark.stop(problem, asking), benchmark.is_whole(problem, asking)
        for sample in range(options.n_samples):
            yield Prompt(benchmark.name, problem.id, sample, text, stop, is_whole)


def _answer(tasks: Sequence[_Task], completions: Iterator[Completion]) -> None:
    """Write each completion to its journal, and warn of prompts that left no room for an answer."""
    asked = {
        (task.benchmark.name, problem.id): (task, problem) for task in tasks for problem in task.benchmark.problems
    }
    full: Counter[str] = Counter()
    for completion in completions:
        task, problem = asked[completion.prompt.task, completion.prompt.problem_id]
        task.journal.add(completion, task.benchmark.extract(problem, completion.text, task.asking))
        full[task.benchmark.name] += completion.tokens == 0
    for name, count in full.items():
        if count:
            warn(f"warning: {name}: {count} prompts fill --max-length alone; their answers are empty")


def _with_progress(
    completions: Iterator[Completion], total: int, waiting: int, on_progress: OnProgress
) -> Iterator[Completion]:
    tokens, begin = 0, time.monotonic()
    for done, completion in enumerate(completions, start=total - waiting + 1):
        tokens += completion.tokens
        rate = tokens / max(time.monotonic() - begin, 1e-9)
        on_progress("generate", done, total, f"{rate:,.0f} tokens/s")
        yield completion
