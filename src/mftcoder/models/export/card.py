"""The model card of an exported folder: README.md with the base model, the data, the settings and the losses."""

from pathlib import Path
from typing import Any

from mftcoder import __version__
from mftcoder.config.schema import RunConfig
from mftcoder.errors import DataError
from mftcoder.jsonl import read_json
from mftcoder.models.export.drift import Drift
from mftcoder.models.export.source import ModelSource


def model_card(
    source: ModelSource,
    name: str,
    drift: Drift | None = None,
    *,
    as_trained: bool = False,
    release: str = "",
    usage: str = "",
) -> str:
    """The text of README.md: base model, data, settings and losses. `release` is a section about its quantization, and `usage` how
    such a model is loaded."""
    config = source.run
    base = config.model.model_name_or_path if config else source.name
    training = [] if config is None else _training(source, config, drift, as_trained=as_trained)
    tuned = f", fine-tuned on {len(config.tasks)} tasks" if config else ", quantized"
    parts = [
        _front_matter(base),
        f"# {name}",
        f"`{base}`{tuned} with mftcoder {__version__}.",
        *([release] if release else []),
        *training,
        "## Use\n\n" + (usage or _usage(name)),
        "`MANIFEST.md5` and `MANIFEST.sha256` list every file: `md5sum -c MANIFEST.md5`, or `mft export --verify .`",
    ]
    return "\n\n".join(parts) + "\n"


def _training(source: ModelSource, config: RunConfig, drift: Drift | None, *, as_trained: bool) -> list[str]:
    assert source.checkpoint is not None
    run = source.checkpoint.parents[1]
    return [
        "## Tasks\n\n" + _task_table(config, _optional(run / "data.json"), _optional(run / "summary.json")),
        "## Training\n\n" + _settings(config, source.checkpoint, drift, as_trained=as_trained),
    ]


def _optional(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or {} if there is none: the card is written without it."""
    try:
        content = read_json(path)
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}


def _front_matter(base: str) -> str:
    is_hub_id = not Path(base).expanduser().exists() and base.count("/") == 1
    of_base = f"base_model: {base}\n" if is_hub_id else ""
    tags = "tags:\n- code\n- multi-task\n- mftcoder"
    return f"---\n{of_base}library_name: transformers\npipeline_tag: text-generation\n{tags}\n---"


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
        **({"base while training": _held(config)} if config.model.quantization else {}),
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


def _held(config: RunConfig) -> str:
    held, kept = config.model.quantization, config.model.modules_to_not_convert
    words = [str(held)] if held == "fp8" else [str(held), "bitsandbytes"]
    return ", ".join([*words, *([f"all layers but {', '.join(kept)}"] if kept else [])])


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
