"""`mft export`: write the model of a run as a folder that any library loads (`verify.py` checks such a folder).

The folder holds merged safetensors, config, tokenizer, chat template, model card and checksums. It appears only when it is complete.
"""

from pathlib import Path

import torch

from mftcoder.config.data import DataConfig
from mftcoder.data.rendering.templates import Template, load_template
from mftcoder.errors import ConfigError, ModelError
from mftcoder.jsonl import atomic_folder, write_text
from mftcoder.log import say, warn
from mftcoder.models.export.card import model_card
from mftcoder.models.export.drift import Drift, measure_drift, predictions
from mftcoder.models.export.folder import write_model_folder
from mftcoder.models.export.source import ModelSource, open_run
from mftcoder.models.files.manifest import write_manifests
from mftcoder.models.loading.load import DTYPES, load_folder


def export(
    run: str | Path,
    out: str | Path,
    *,
    checkpoint: str = "best",
    dtype: str | None = None,
    compare: bool = True,
    as_trained: bool = False,
) -> Path:
    """Write the model of `run` into the new folder `out` and return `out`. `dtype` is bfloat16 or float32 (default: the run's own).

    An adapter that was trained over a base in 4 or 8 bits is merged into the original weights, or with `as_trained` into the
    dequantized ones. `compare` reports how that changes the predictions.
    """
    run, out = Path(run), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError(f"{out}: exists already; give a new folder, or remove it first")
    source = open_run(run, checkpoint)
    assert source.run is not None
    template = _template(source, source.run.data)
    say(f"exporting {source.checkpoint}")
    try:
        with atomic_folder(out) as temporary:
            write_model_folder(
                source,
                temporary,
                dtype=DTYPES[dtype] if dtype else source.dtype(),
                chat_template=template.as_jinja() if template else "",
                end=template.end if template else source.tokenizer.eos_token,
                as_trained=as_trained,
            )
            drift = _drift(source, temporary) if compare and source.quantization else None
            _say_drift(source, drift, as_trained=as_trained)
            write_text(temporary / "README.md", model_card(source, out.name, drift, as_trained=as_trained))
            write_manifests(temporary)
    except OSError as error:
        raise ModelError(f"{out}: cannot be written: {error.strerror or error}. Nothing was left behind") from error
    say(f"wrote {out}. Check it anywhere with: mft export --verify {out}")
    return out


def _drift(source: ModelSource, merged: Path) -> Drift:
    """How the merge changed the predictions. The two models are loaded one after the other."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = predictions(source.load(device=device, dtype=source.dtype(), as_trained=True), source.tokenizer)
    model = load_folder(
        merged, dtype=source.dtype(), device=device, trust_remote_code=source.trust_remote_code, use_safetensors=True
    )
    return measure_drift(before, predictions(model, source.tokenizer), source.tokenizer)


def _say_drift(source: ModelSource, drift: Drift | None, *, as_trained: bool) -> None:
    if drift is None:
        return
    base = f"what {source.quantization} held" if as_trained else "the original weights"
    line = f"merged into {base}, trained over {source.quantization}: {drift}"
    if not drift.is_large or as_trained:
        say(line)
    else:
        warn(
            f"warning: {line}. The merged model is not quite the one that was trained: validate it, merge into the "
            "base as it was held (mft export --as-trained), or train with whole weights (model.quantization: null)"
        )


def _template(source: ModelSource, data: DataConfig) -> Template | None:
    """The template of the run. None if the tokenizer has none and the run trained on plain text."""
    try:
        return load_template(data, source.tokenizer)
    except ConfigError:
        if data.chat_template == "auto" and data.role_markers is None and not source.tokenizer.chat_template:
            return None
        raise
