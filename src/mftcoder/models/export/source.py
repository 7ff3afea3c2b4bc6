"""The model that a user names, to run or to export: a run folder, a model folder, a .gguf file or a Hub id.

A ModelSource has the paths of its weights, adapter and tokenizer. It loads the model with the adapter merged, exactly as the export
writes it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mftcoder.config.load import load_config
from mftcoder.config.schema import RunConfig
from mftcoder.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from mftcoder.errors import CheckpointError, ModelError
from mftcoder.jsonl import read_json
from mftcoder.models.export.merge import match, read_updates
from mftcoder.models.files.weights import stored_dtype
from mftcoder.models.layers.adapters import ADAPTER_CONFIG, load_adapter, reaches_experts
from mftcoder.models.loading.given import save_tokenizer
from mftcoder.models.loading.load import DTYPES, load_folder
from mftcoder.models.loading.resolve import local_folder


@dataclass(frozen=True)
class ModelSource:
    """A model on disk that is not loaded."""

    name: str  # of the folder or the run, for file names
    weights: Path  # folder with config.json and weights
    adapter: Path | None  # peft folder of an adapter over the weights
    tokenizer: Tokenizer
    run: RunConfig | None = None
    checkpoint: Path | None = None
    trust_remote_code: bool = False
    loaded: Any = None  # the model itself, where the caller has loaded it; `weights` then holds its configs only

    def dtype(self, wanted: str | None = None, *, float16: bool = False) -> torch.dtype:
        """The requested dtype; else the run's; else that of config.json or of the files, if it is supported; else bfloat16.

        `float16` is supported if asked.
        """
        if self.loaded is not None:
            found: torch.dtype = self.loaded.dtype
            return found
        known = {**DTYPES, "float16": torch.float16} if float16 else DTYPES
        if wanted is None and self.run is None:
            config = read_json(self.weights / "config.json")
            named = config.get("dtype") or config.get("torch_dtype")  # the second until transformers 5
            wanted = str(named or stored_dtype(self.weights))
        return known.get(wanted or str(self.run and self.run.model.dtype), torch.bfloat16)

    @property
    def quantization(self) -> str | None:
        """The quantization of the base while the adapter trained; None for unquantized weights."""
        return self.run.model.quantization if self.run and self.adapter else None

    @property
    def kept(self) -> tuple[str, ...]:
        """The layers that this quantization left out."""
        return self.run.model.modules_to_not_convert if self.run and self.quantization else ()

    def load(
        self, *, device: torch.device | str, dtype: torch.dtype, as_trained: bool = False, hold: str | None = None
    ) -> Any:
        """The model on `device`, ready to generate, with the adapter merged into the base's original weights.

        `as_trained` keeps the adapter unmerged over the base with the run's quantization. ModelError if there was none. `hold` is
        4bit or 8bit: the weights are held so, and the adapter stays unmerged over them.
        """
        if self.loaded is not None:
            return self.loaded
        if as_trained and not self.quantization:
            raise ModelError(
                f"{self.name}: was not trained over a base in 4 or 8 bits, so it cannot be loaded that way"
            )
        safe = self.run.model.use_safetensors if self.run else True
        quantization = self.quantization if as_trained else hold
        model = load_folder(
            self.weights,
            dtype=dtype,
            device=device,
            trust_remote_code=self.trust_remote_code,
            use_safetensors=safe,
            quantization=quantization,
            kept=self.kept if as_trained else (),
        )
        if self.adapter is None:
            return model
        return load_adapter(model, self.adapter).eval() if quantization else merged_in_memory(model, self.adapter)


def find_source(model: str, *, checkpoint: str = "best", trust_remote_code: bool = False) -> ModelSource:
    """The source that a user named. ModelError or CheckpointError if there is none."""
    path = Path(model).expanduser()
    if (path / "checkpoints").is_dir() or (path / "config.yaml").is_file():
        return open_run(path, checkpoint)
    weights = local_folder(model, weights=True)
    name = path.stem if path.suffix == ".gguf" else path.resolve().name if path.is_dir() else model.rpartition("/")[2]
    return ModelSource(name, weights, None, _tokenizer_of(model, weights), trust_remote_code=trust_remote_code)


def loaded_source(model: Any, tokenizer: Any, name: str, folder: Path) -> ModelSource:
    """The source of a model that the caller has loaded; its configs and its tokenizer are written to `folder`."""
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    return ModelSource(name, folder, None, save_tokenizer(tokenizer, folder / "tokenizer"), loaded=model)


def open_run(run: Path, checkpoint: str = "best") -> ModelSource:
    """The model of a run folder. `checkpoint` is best, latest, or the name of a folder below `checkpoints`."""
    if not (run / "config.yaml").is_file():
        raise CheckpointError(
            f"{run}: is not a run folder: it has no config.yaml. Give the output_dir of a training run"
        )
    config = load_config(run / "config.yaml")
    chosen = find_checkpoint(run, checkpoint)
    base = local_folder(config.model.model_name_or_path, weights=True, pickled=not config.model.use_safetensors)
    named = config.model.tokenizer_name_or_path
    tokenizer = load_tokenizer(named) if named else _tokenizer_of(config.model.model_name_or_path, base)
    weights = chosen / "model"
    is_adapter = (weights / ADAPTER_CONFIG).is_file()
    return ModelSource(
        name=run.resolve().name,
        weights=base if is_adapter else weights,
        adapter=weights if is_adapter else None,
        tokenizer=tokenizer,
        run=config,
        checkpoint=chosen,
        trust_remote_code=config.model.trust_remote_code,
    )


def _tokenizer_of(model: str, folder: Path) -> Tokenizer:
    """The tokenizer in a model's native folder; if it has none, the user's own path, whose error gives the reason."""
    return load_tokenizer(str(folder) if (folder / "tokenizer.json").is_file() else model)


def find_checkpoint(run: Path, wanted: str) -> Path:
    """The checkpoint folder for `best`, `latest` or a folder's name; the latest if there is no best."""
    folder = run / "checkpoints"
    known = sorted(path.name for path in folder.glob("step-*") if path.is_dir())
    if not known:
        raise CheckpointError(f"{folder}: holds no checkpoint yet. Train first, or wait for the first one")
    pointers = {"best": ("best", "latest"), "latest": ("latest",)}.get(wanted)
    files = [folder / name for name in pointers or () if (folder / name).is_file()]
    names = [file.read_text(encoding="utf-8").strip() for file in files] if pointers else [wanted]
    found = next((name for name in names if name in known), None)
    if found is None:
        raise CheckpointError(f"{folder}: has no checkpoint '{wanted}'. Known: best, latest, {', '.join(known)}")
    return folder / found


def merged_in_memory(model: Any, adapter: Path) -> Any:
    """A loaded model with a LoRA adapter added to its weights: in float32, rounded once, as in the streaming merge.

    Updates of fused experts are merged by peft, in the model's own dtype.
    """
    if reaches_experts(adapter):
        return load_adapter(model, adapter).merge_and_unload()
    parameters = dict(model.named_parameters())
    for name, update in match(read_updates(adapter), parameters, base="this model", adapter=adapter).items():
        weight = parameters[name]
        weight.data = update.to(weight.device).merged(weight.data).to(weight.dtype)
    return model
