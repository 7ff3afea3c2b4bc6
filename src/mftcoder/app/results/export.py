"""`mft export`: write the model of a run as a folder that any library loads (`verify.py` checks such a folder).

The folder holds merged safetensors, config, tokenizer, chat template, model card and checksums. It appears only when it is complete.
"""

from pathlib import Path
from typing import Any

import torch

from mftcoder import __version__
from mftcoder.config.data import DataConfig
from mftcoder.config.schema import RunConfig
from mftcoder.data.rendering.templates import Template, load_template
from mftcoder.errors import ConfigError, DataError, ModelError
from mftcoder.jsonl import atomic_folder, read_json, write_text
from mftcoder.log import say, warn
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
            write_text(temporary / "README.md", model_card(source, run, out.name, drift, as_trained=as_trained))
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


def model_card(
    source: ModelSource, run: Path, name: str, drift: Drift | None = None, *, as_trained: bool = False
) -> str:
    """The text of README.md: base model, data, settings and losses."""
    config = source.run
    assert config is not None and source.checkpoint is not None
    base = config.model.model_name_or_path
    parts = [
        _front_matter(base),
        f"# {name}",
        f"`{base}`, fine-tuned on {len(config.tasks)} tasks with mftcoder {__version__}.",
        "## Tasks\n\n" + _task_table(config, _optional(run / "data.json"), _optional(run / "summary.json")),
        "## Training\n\n" + _settings(config, source.checkpoint, drift, as_trained=as_trained),
        "## Use\n\n" + _usage(name),
        "`MANIFEST.md5` and `MANIFEST.sha256` list every file: `md5sum -c MANIFEST.md5`, or `mft export --verify .`",
    ]
    return "\n\n".join(parts) + "\n"


def _optional(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or {} if there is none: the card is written without it."""
    try:
        content = read_json(path)
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}


def _front_matter(base: str) -> str:
    is_hub_id = not Path(base).expanduser().exists() and base.count("/") == 1
    lines = [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags:",
        "- code",
        "- multi-task",
        "- mftcoder",
    ]
    return "\n".join(["---", *([f"base_model: {base}"] if is_hub_id else []), *lines, "---"])


def _task_table(config: RunConfig, data: dict[str, Any], summary: dict[str, Any]) -> str:
    """For each task its data, and its validation losses at the first, the last and the best step."""
    losses = summary.get("validation") or {}
    rows = [
        "| task | weight | samples | trained tokens | loss before | loss after | best |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in config.tasks:
        counts = (data.get("tasks") or {}).get(task.name) or {}
        numbers = [counts.get("samples"), counts.get("trained_tokens")]
        values = [(losses.get(when) or {}).get(task.name) for when in ("first", "last", "best")]
        cells = [
            task.name,
            f"{task.weight:g}",
            *("-" if number is None else f"{number:,}" for number in numbers),
            *("-" if value is None else f"{value:.4f}" for value in values),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _settings(config: RunConfig, checkpoint: Path, drift: Drift | None, *, as_trained: bool) -> str:
    adapter = config.adapter
    kind = (
        "all weights"
        if adapter.type == "full"
        else f"LoRA, rank {adapter.lora_rank}, alpha {adapter.lora_alpha:g}, merged"
    )
    template = "role markers" if config.data.role_markers else config.data.chat_template
    rows = {
        "trained": kind,
        **({"base while training": _held(config.model.quantization)} if config.model.quantization else {}),
        **({f"merge into {'the base as held' if as_trained else 'the original weights'}": str(drift)} if drift else {}),
        "checkpoint": checkpoint.name,
        "objective": config.loss.normalization,
        "balancer": config.balancer.name,
        "learning rate": f"{config.train.learning_rate:g}, {config.train.lr_scheduler_type}",
        "chat template": template,
        "length": f"{config.data.max_length:,} tokens, packing {config.data.packing}",
        "seed": str(config.train.seed),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])


def _held(quantization: str) -> str:
    return quantization if quantization == "fp8" else f"{quantization}, bitsandbytes"


def _usage(name: str) -> str:
    return (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'folder = "{name}"\n'
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        'model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")\n'
        'chat = [{"role": "user", "content": "Write a Python function that reverses a string."}]\n'
        'inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)\n'
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=256)[0]))\n"
        "```"
    )
