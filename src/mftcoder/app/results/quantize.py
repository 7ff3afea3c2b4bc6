"""`mft export --quantize`: write a model in fewer bits, load it back, and measure what that cost.

The model is first written as `mft export` writes it, beside OUT, and removed in the end. A release that lost more than its bits may cost is
refused, and then nothing is left.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mftcoder.app.serving.model_choice import choose_source, usage_of
from mftcoder.data.prepared.columns import TaskSamples
from mftcoder.data.prepared.store import prepare
from mftcoder.errors import BrokenReleaseError, DataError, ModelError
from mftcoder.jsonl import atomic_folder, read_json, write_json, write_text
from mftcoder.log import say, warn
from mftcoder.models.conversion import gguf
from mftcoder.models.export.card import model_card
from mftcoder.models.export.folder import write_model_folder
from mftcoder.models.export.quantized.gguf_file import BY_LLAMA_CPP, find_program, write_gguf
from mftcoder.models.export.quantized.losses import Measured, Text, Texts, fixed_texts, measure
from mftcoder.models.export.quantized.methods import Method, find_method
from mftcoder.models.export.quantized.release import FILE, Release
from mftcoder.models.export.source import ModelSource
from mftcoder.models.files.manifest import write_manifests
from mftcoder.models.loading.load import DTYPES, load_folder


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
    validation_samples: int = 100
    """The most samples of a task that are measured."""
    max_loss_increase: float | None = None
    """The largest rise of a task's loss that is accepted, in nats; None: by the bits."""


def quantize(model: str | Path, out: str | Path, method: str, **options: Any) -> Release:
    """Write `model` into the new folder `out` by `method` (such as gguf:Q8_0), check it, and return what was measured.

    `model` is a run folder, a model folder or a Hub id. `options` are the fields of QuantizeOptions. BrokenReleaseError, with nothing
    left, if the release loses too much.
    """
    out, chosen, found = Path(out), QuantizeOptions(**options), find_method(method)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out}: exists already; give a new folder, or remove it first")
    program = find_program(chosen.llama_quantize, found.gguf_type) if found.gguf_type in BY_LLAMA_CPP else None
    source = choose_source(str(model), checkpoint=chosen.checkpoint, trust_remote_code=False)
    _check_whole(source, str(model))
    texts = _texts(source, chosen.validation_samples)
    try:
        with atomic_folder(out) as temporary, tempfile.TemporaryDirectory(dir=out.parent, prefix=".whole-") as parent:
            whole = Path(parent) / out.name
            whole.mkdir()
            ends = _write_whole(source, whole, chosen)
            before = _measured(whole, texts)
            say(f"quantizing by {found.name}")
            release = _write_gguf_release(found, whole, temporary, before, texts, ends, program, chosen)
            if problems := release.problems():
                raise BrokenReleaseError(*(f"{out}: {problem}. Nothing was left behind" for problem in problems))
            _describe(source, release, temporary, out.name, as_trained=chosen.as_trained)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written: {error.strerror or error}. Nothing was left behind") from error
    say(f"wrote {out}. Check it anywhere with: mft export --verify {out}")
    return release


def _check_whole(source: ModelSource, named: str) -> None:
    """ModelError for a model that is quantized already: more bits are not in it."""
    quantized = read_json(source.weights / "config.json").get("quantization_config")
    if quantized or (named.endswith(".gguf") and gguf.is_quantized(Path(named).expanduser())):
        raise ModelError(f"{named}: is quantized already; quantize the model that it was made from")


def _write_whole(source: ModelSource, whole: Path, options: QuantizeOptions) -> frozenset[int]:
    """Write the model as the export does; returns the tokens that end an answer."""
    usage = usage_of(source)
    write_model_folder(
        source,
        whole,
        dtype=DTYPES[options.dtype] if options.dtype else source.dtype(),
        chat_template=usage.template.as_jinja() if usage.template else "",
        end=usage.template.end if usage.template else source.tokenizer.eos_token,
        as_trained=options.as_trained,
    )
    return usage.chat_end_ids


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


def _write_gguf_release(
    method: Method,
    whole: Path,
    out: Path,
    before: dict[str, Measured],
    texts: Texts,
    ends: frozenset[int],
    program: Path | None,
    options: QuantizeOptions,
) -> Release:
    """Write the .gguf file, convert it back as any reader does, and measure that."""
    file = out / f"{whole.name}-{method.gguf_type}.gguf"
    for note in write_gguf(whole, file, method.gguf_type, ends=ends, program=program):
        warn(f"warning: {note}")
    with tempfile.TemporaryDirectory(dir=whole.parent) as read:
        gguf.convert_file(file, Path(read))
        after = _measured(Path(read), texts)
    rise = options.max_loss_increase
    return Release(
        out,
        method,
        before,
        after,
        bytes_before=sum(path.stat().st_size for path in whole.glob("*.safetensors")),
        bytes_after=file.stat().st_size,
        allowed_rise=method.allowed_rise if rise is None else rise,
        files=(file.name,),
        types=gguf.tensor_types(file),
    )


def _describe(source: ModelSource, release: Release, out: Path, name: str, *, as_trained: bool) -> None:
    """Write card, table and checksums beside the weights."""
    usage = _gguf_usage(f"{name}/{release.files[0]}")
    card = model_card(source, name, as_trained=as_trained, release=release.card(), usage=usage)
    write_json(out / FILE, release.as_json())
    write_text(out / "README.md", card)
    write_manifests(out)


def _gguf_usage(file: str) -> str:
    return f"```sh\nmft chat {file}\nmft serve {file}\nllama-cli -m {file}\n```"
