"""`mft export --quantize`: write a model in fewer bits, load it back, and measure what that cost.

The model is first written as `mft export` writes it, beside OUT, and removed in the end. A release that lost more than its bits may cost is
refused, and then nothing is left.
"""

import importlib.util
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mftcoder.app.scoring.engine_choice import open_engine
from mftcoder.app.serving.model_choice import Usage, choose_source, usage_of
from mftcoder.benchmarks.catalogue import GROUPS, all_tasks, expand
from mftcoder.data.prepared.columns import TaskSamples
from mftcoder.data.prepared.store import prepare
from mftcoder.errors import BrokenReleaseError, ConfigError, DataError, ModelError
from mftcoder.generation.engine import Prompt, Sampling
from mftcoder.jsonl import atomic_folder, write_json, write_jsonl, write_text
from mftcoder.log import say, warn
from mftcoder.models.conversion import gguf
from mftcoder.models.export.card import model_card
from mftcoder.models.export.folder import write_model_folder
from mftcoder.models.export.quantized.compressed import WEIGHTS, choose_group, write_compressed
from mftcoder.models.export.quantized.environment import python_of_llmcompressor
from mftcoder.models.export.quantized.gguf_file import BY_LLAMA_CPP, check_gguf_package, find_program, write_gguf
from mftcoder.models.export.quantized.methods import Method, find_method
from mftcoder.models.export.quantized.release import FILE, Release
from mftcoder.models.export.quantized.texts import (
    CALIBRATION,
    IGNORED,
    Calibrated,
    Measured,
    Text,
    Texts,
    fixed_texts,
    measure,
    read_calibration,
)
from mftcoder.models.export.source import ModelSource, find_source
from mftcoder.models.files.manifest import write_manifests
from mftcoder.models.loading.load import DTYPES, load_folder
from mftcoder.models.loading.stored_bits import is_stored_quantized
from mftcoder.processes import following_environment
from mftcoder.registry import did_you_mean
from mftcoder.reporting.scores import find_metrics, read_scores


@dataclass(frozen=True)
class QuantizeOptions:
    """How a model is quantized, and what is measured."""

    checkpoint: str = "best"
    dtype: str | None = None
    """bfloat16 or float32: the weights that are quantized; None: the run's own."""
    as_trained: bool = False
    """Merge into the base as the run's 4 or 8 bits held it."""
    llama_quantize: str | None = None
    """llama.cpp's program; None: from the PATH."""
    python: str | None = None
    """An interpreter with llmcompressor; None: an environment in the cache, made on first use."""
    group_size: int | None = None
    """Weights of a row that share a scale (gptq, awq); None: the largest of 128, 64 and 32 that divides all rows."""
    calibration: Path | None = None
    """Records with `prompt` and `answer` (gptq, awq); None: questions of the training data, with the model's own answers."""
    calibration_samples: int = 128
    answer_tokens: int = 256
    """The most tokens of an own answer."""
    seed: int = 0
    """Draws the questions."""
    validation_samples: int = 100
    """The most samples of a task that are measured."""
    max_loss_increase: float | None = None
    """The largest rise of a task's loss that is accepted, in nats; None: by the bits."""
    exams: Sequence[str] = ()
    """Benchmarks whose pass@1 is measured before and after, by `mft generate --evaluate`."""
    data_dir: Path | None = None
    """Folder with the data of the exams."""


@dataclass(frozen=True)
class _Work:
    """One quantization: the model written whole, and the folder that is filled."""

    method: Method
    options: QuantizeOptions
    source: ModelSource
    whole: Path
    out: Path
    tool: Path | None  # llama-quantize, or an interpreter with llmcompressor
    texts: Texts
    before: dict[str, Measured]

    def release(self, after: dict[str, Measured], files: Sequence[Path], **facts: Any) -> Release:
        rise = self.options.max_loss_increase
        return Release(
            self.out,
            self.method,
            self.before,
            after,
            bytes_before=sum(path.stat().st_size for path in self.whole.glob(WEIGHTS)),
            bytes_after=sum(path.stat().st_size for path in files),
            allowed_rise=self.method.allowed_rise if rise is None else rise,
            files=tuple(path.name for path in files),
            **facts,
        )


def quantize(model: str | Path, out: str | Path, method: str, **options: Any) -> Release:
    """Write `model` into the new folder `out` by `method` (such as gptq or gguf:Q8_0), check it, and return what was measured.

    `model` is a run folder, a model folder or a Hub id. `options` are the fields of QuantizeOptions. BrokenReleaseError, with nothing
    left, if the release loses too much.
    """
    out, chosen, found = Path(out), QuantizeOptions(**options), find_method(method)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out}: exists already; give a new folder, or remove it first")
    source = choose_source(str(model), checkpoint=chosen.checkpoint, trust_remote_code=False)
    is_quantized_file = str(model).endswith(".gguf") and gguf.is_quantized(Path(model).expanduser())
    if is_quantized_file or is_stored_quantized(source.weights):
        raise ModelError(f"{model}: is quantized already; quantize the model that it was made from")
    _check_options(found, chosen, source)
    tool = _tool(found, chosen)
    try:
        with atomic_folder(out) as temporary:
            release = _made(source, found, chosen, out, temporary, tool)
            _describe(source, release, temporary, out.name, as_trained=chosen.as_trained)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written: {error.strerror or error}. Nothing was left behind") from error
    say(f"wrote {out}. Check it anywhere with: mft export --verify {out}")
    return release


def _made(
    source: ModelSource, method: Method, options: QuantizeOptions, out: Path, temporary: Path, tool: Path | None
) -> Release:
    """Quantize into the folder `temporary`, and measure. BrokenReleaseError if the release, which will be `out`, loses too much."""
    texts = _texts(source, options.validation_samples)
    with tempfile.TemporaryDirectory(dir=temporary, prefix=".whole-") as parent:
        whole = Path(parent) / out.name
        whole.mkdir()
        usage = usage_of(source)
        write_model_folder(
            source,
            whole,
            dtype=DTYPES[options.dtype] if options.dtype else source.dtype(),
            chat_template=usage.template.as_jinja() if usage.template else "",
            end=usage.template.end if usage.template else source.tokenizer.eos_token,
            as_trained=options.as_trained,
        )
        work = _Work(method, options, source, whole, temporary, tool, texts, _measured(whole, texts))
        say(f"quantizing by {method.name}")
        release = _gguf_release(work, usage) if method.gguf_type else _compressed_release(work, usage)
        if problems := release.problems():
            raise BrokenReleaseError(*(f"{out}: {problem}. Nothing was left behind" for problem in problems))
        return replace(release, folder=out, exams=_examined(work, release))


def _check_options(method: Method, options: QuantizeOptions, source: ModelSource) -> None:
    """ConfigError for options that this method does not follow, and for calibration without texts; DataError for a file of no texts."""
    usual = QuantizeOptions()
    of_methods = {
        ("calibration", "calibration_samples", "answer_tokens", "seed", "group_size"): method.needs_calibration,
        ("python",): not method.gguf_type,
        ("llama_quantize",): method.gguf_type in BY_LLAMA_CPP,
    }
    problems = [
        f"--{name.replace('_', '-')}: has no effect on {method.name}"
        for names, follows in of_methods.items()
        for name in names
        if not follows and getattr(options, name) != getattr(usual, name)
    ]
    if method.needs_calibration and options.calibration is None and source.run is None:
        problems.append(
            f"--quantize {method.name}: looks at texts, and {source.name} is no run that has some. Give --calibration FILE"
        )
    if options.exams and not method.gguf_type and importlib.util.find_spec("compressed_tensors") is None:
        problems.append(
            f"--exam: answering with a {method.name} release needs compressed-tensors. Install it with: pip install 'mftcoder[compressed]'"
        )
    known = all_tasks()
    problems += [
        f"--exam: unknown task '{name}'.{did_you_mean(name, [*known, *GROUPS])}"
        for name in expand(options.exams)
        if name not in known
    ]
    if options.data_dir and not options.exams:
        problems.append("--data-dir: is for --exam")
    if problems:
        raise ConfigError(*problems)
    if options.calibration:
        read_calibration(options.calibration)  # before anything is installed, exported or measured
    if method.needs_calibration and any(source.weights.glob(WEIGHTS)):
        choose_group(source.weights, options.group_size)  # likewise; pickled weights are checked after the export


def _tool(method: Method, options: QuantizeOptions) -> Path | None:
    if method.gguf_type:
        check_gguf_package()
        needs_program = method.gguf_type in BY_LLAMA_CPP
        return find_program(options.llama_quantize, method.gguf_type) if needs_program else None
    return python_of_llmcompressor(options.python)


def _texts(source: ModelSource, most: int) -> Texts:
    """The validation samples of each task; fixed texts for a model that is no run, and where there are none."""
    if source.run is None:
        return fixed_texts(source.tokenizer)
    try:
        store = prepare(source.run)
    except DataError as error:
        warn(
            f"warning: the run's validation data cannot be read, so only fixed texts are measured: {error.problems[0]}"
        )
        return fixed_texts(source.tokenizer)
    groups = {task: _spread(store.validation(number), most) for number, task in enumerate(store.tasks)}
    found = {task: group for task, group in groups.items() if group}
    if len(found) < len(groups):
        warn(f"warning: without validation samples are {', '.join(sorted(groups.keys() - found.keys()))}")
    return found or fixed_texts(source.tokenizer)


def _spread(samples: TaskSamples, most: int) -> list[Text]:
    """At most that many samples, spread over all of them; of a pair the first text."""
    chosen = np.linspace(0, max(len(samples) - 1, 0), min(most, len(samples))).astype(int)
    found = []
    for index in chosen:
        sample = samples.sample(int(index))
        end = sample.second or len(sample.input_ids)
        found.append(Text(sample.input_ids[:end].astype(np.int64), sample.targets[:end].astype(np.int64)))
    return found


def _measured(folder: Path, texts: Texts) -> dict[str, Measured]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return measure(load_folder(folder, dtype=torch.float32, device=device), texts)


def _gguf_release(work: _Work, usage: Usage) -> Release:
    """Write the .gguf file, convert it back as any reader does, and measure that."""
    kind = work.method.gguf_type
    file = work.out / f"{work.whole.name}-{kind}.gguf"
    for note in write_gguf(work.whole, file, kind, ends=usage.chat_end_ids, program=work.tool):
        warn(f"warning: {note}")
    with tempfile.TemporaryDirectory(dir=work.whole.parent) as read:
        gguf.convert_file(file, Path(read))
        after = _measured(Path(read), work.texts)
    return work.release(after, [file], types=gguf.tensor_types(file))


def _compressed_release(work: _Work, usage: Usage) -> Release:
    """Quantize and measure in the environment of llmcompressor."""
    assert work.tool is not None
    options, settings = work.options, dict[str, Any]()
    calibration: list[Calibrated] = []
    group = 0
    if work.method.needs_calibration:
        group = choose_group(work.whole, options.group_size)
        calibration = read_calibration(options.calibration) if options.calibration else _own_answers(work, usage)
        calibration = calibration[: options.calibration_samples]
        write_jsonl(work.out / CALIBRATION, [asdict(one) for one in calibration])
        settings = {
            "group_size": group,
            "seed": options.seed,
            "calibration": {"file": CALIBRATION, "samples": len(calibration)},
        }
    ids = [one.ids(work.source.tokenizer) for one in calibration]
    after, versions = write_compressed(
        work.tool, work.method, work.whole, work.out, ids, work.texts, group=group, seed=options.seed
    )
    return work.release(after, sorted(work.out.glob(WEIGHTS)), settings={**settings, "versions": versions})


def _own_answers(work: _Work, usage: Usage) -> list[Calibrated]:
    """Questions of the training data, spread over the tasks, with greedy answers of the model as it is before quantization."""
    assert work.source.run is not None
    store, options = prepare(work.source.run), work.options
    questions: list[tuple[str, str, str]] = []
    for task, index in _drawn([len(store.train(task)) for task in range(len(store.tasks))], options):
        sample = store.train(task).sample(index)
        first = int((sample.targets != IGNORED).argmax())
        prompt = work.source.tokenizer.decode(sample.input_ids[: first + 1].tolist())
        questions.append((store.tasks[task], sample.origin, prompt))
    say(f"answering {len(questions)} questions of the training data for the calibration")
    engine = open_engine(
        "transformers",
        find_source(str(work.whole)),
        Sampling(max_new_tokens=options.answer_tokens),
        usage.template,
        device="cuda" if torch.cuda.is_available() else "cpu",
        dtype=work.source.dtype(options.dtype),
        batch_size=None,
        as_trained=False,
    )
    prompts = [Prompt(task, str(number), 0, text) for number, (task, _, text) in enumerate(questions)]
    end = usage.template.end if usage.template else work.source.tokenizer.eos_token
    answers = {
        int(done.prompt.problem_id): done.text + end * (done.finish_reason == "stop")
        for done in engine.generate(prompts)
    }
    return [Calibrated(task, origin, text, answers[number]) for number, (task, origin, text) in enumerate(questions)]


def _drawn(sizes: Sequence[int], options: QuantizeOptions) -> list[tuple[int, int]]:
    """Tasks in turn, and a sample of each that was not drawn before."""
    drawn, most = random.Random(options.seed), options.calibration_samples
    of_task = [
        [(task, index) for index in drawn.sample(range(size), min(size, most))] for task, size in enumerate(sizes)
    ]
    return [place for places in zip_longest(*of_task) for place in places if place][:most]


def _examined(work: _Work, release: Release) -> dict[str, tuple[float, float]]:
    """pass@1 of each exam before and after, by the commands that a user would type."""
    if not work.options.exams:
        return {}
    after = work.out / release.files[0] if work.method.gguf_type else work.out
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("before", work.whole), ("after", after)):
            _take_exams(model, name, Path(folder), work.options)
        scores = [score for score in read_scores(find_metrics(Path(folder))) if score.k == 1]
    found = {(score.task, score.model): score.value for score in scores}
    return {task: (found[task, "before"], found[task, "after"]) for task in sorted({task for task, _ in found})}


def _take_exams(model: Path, name: str, folder: Path, options: QuantizeOptions) -> None:
    say(f"taking {', '.join(options.exams)} {name} quantization")
    command = [
        sys.executable,
        "-m",
        "mftcoder",
        "generate",
        str(model),
        "--evaluate",
        "--name",
        name,
        "--out",
        str(folder),
    ]
    command += ["--task", ",".join(options.exams), *(["--data-dir", str(options.data_dir)] if options.data_dir else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=following_environment())
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise ModelError(
            f"--exam: mft generate failed (exit code {done.returncode}): {' '.join(last).removeprefix('error: ')}"
        )


def _describe(source: ModelSource, release: Release, out: Path, name: str, *, as_trained: bool) -> None:
    """Write card, table and checksums beside the weights."""
    usage = _usage(f"{name}/{release.files[0]}" if release.method.gguf_type else name, release.method)
    card = model_card(source, name, as_trained=as_trained, release=release.card(), usage=usage)
    write_json(out / FILE, release.as_json())
    write_text(out / "README.md", card)
    write_manifests(out)


def _usage(path: str, method: Method) -> str:
    other = f"llama-cli -m {path}" if method.gguf_type else f"vllm serve {path}"
    needed = "" if method.gguf_type else "pip install 'mftcoder[compressed]'  # for mft\n"
    return f"```sh\n{needed}mft chat {path}\nmft serve {path}\n{other}\n```"
