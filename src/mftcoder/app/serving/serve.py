"""`mft serve`: a model behind the OpenAI protocol, with the template and the end tokens of its training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mftcoder.app.scoring.engine_choice import engine_name
from mftcoder.app.serving.model_choice import catalogue_of, choose_source, load_model, served_model
from mftcoder.errors import ConfigError, ModelError
from mftcoder.generation.live_engine import Deliver, LiveEngine, RequestEngine
from mftcoder.jsonl import read_json
from mftcoder.log import say, warn
from mftcoder.models.export.source import ModelSource, open_run
from mftcoder.models.layers.adapters import ADAPTER_CONFIG, load_adapters
from mftcoder.models.loading.resolve import read_model_config
from mftcoder.serving.catalogue import Catalogue, Served
from mftcoder.serving.server import bind, read_keys, run_server
from mftcoder.serving.ui import Ui

EngineOf = Callable[[Deliver], RequestEngine]


@dataclass(frozen=True)
class ServeOptions:
    """How a model is served."""

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    """Name of the model for clients; None: from its folder."""
    engine: str = "auto"
    """transformers, openvino, vllm, or auto: vLLM on a GPU and OpenVINO on a CPU, where they are installed and can run the model."""
    engine_flags: Sequence[str] = ()
    """Flags of vLLM's own command line."""
    adapters: Mapping[str, Path] | None = None
    """Name -> peft folder or run folder of a LoRA adapter over the model."""
    api_key_file: Path | None = None
    template: str | None = None
    """Chat template; None: the run's, else the tokenizer's own."""
    batch_size: int = 64
    """Texts that are generated at the same time."""
    cache_tokens: int = 32768
    """Largest size of the key-value cache: rows times columns."""
    max_requests: int = 512
    """Texts that may be in work or wait; more are refused with 429."""
    max_body_mb: float = 8
    """Largest request; a larger one is refused with 413."""
    grace_seconds: int = 300
    """How long answers may take to complete after SIGTERM."""
    ui: bool = False
    """Offer the page, with its sandbox and its votes."""
    votes: Path = Path("votes.jsonl")
    """File that the page's votes are appended to, as preference records."""
    checkpoint: str = "best"
    load: str | None = None
    """4bit or 8bit: how the weights are held."""
    dtype: str | None = None
    device: str = "auto"
    trust_remote_code: bool = False


def serve(model: str, **options: Any) -> None:
    """Serve a model until SIGTERM or Ctrl-C. `options` are the fields of ServeOptions."""
    chosen = ServeOptions(**options)
    keys = read_keys(chosen.api_key_file)
    ui = Ui(chosen.votes, has_keys=bool(keys)) if chosen.ui else None
    bound = bind(chosen.host, chosen.port, keys)
    with bound:
        source = choose_source(model, checkpoint=chosen.checkpoint, trust_remote_code=chosen.trust_remote_code)
        name = _engine(chosen, source)
        base = served_model(source, chosen.name or source.name, chosen.template)
        adapters, folders = _adapters(source, base, chosen.adapters or {})
        served = [base, *adapters]
        if name == "vllm":
            catalogue, engine_of = _on_vllm(source, served, folders, chosen)
        else:
            catalogue, engine_of = _in_this_process(source, served, folders, chosen, name)
        bound.listen(2048)  # from here on a client that connects is answered
        _tell(catalogue, bound.getsockname(), keys)
        if ui is not None:
            say(f"page: the same address without /v1; votes go to {chosen.votes}")
        run_server(
            engine_of,
            catalogue,
            bound,
            keys=keys,
            most_texts=chosen.max_requests,
            most_bytes=int(chosen.max_body_mb * 2**20),
            grace_seconds=chosen.grace_seconds,
            ui=ui,
        )


def _engine(chosen: ServeOptions, source: ModelSource) -> str:
    """transformers, openvino or vllm. ConfigError for options that the engine does not have."""
    wanted = "transformers" if chosen.engine == "auto" and chosen.load else chosen.engine
    name = engine_name(wanted, source, device=chosen.device, dtype=None if wanted == "vllm" else chosen.dtype)
    if name == "openvino" and chosen.adapters:
        if chosen.engine != "auto":
            raise ConfigError("--adapter: OpenVINO runs one model with whole weights. Use --engine transformers")
        name = "transformers"
    if name == "vllm" and chosen.load:
        raise ConfigError(f"--load {chosen.load}: vLLM has flags of its own for this: -- --quantization ...")
    if name != "vllm" and chosen.engine_flags:
        raise ConfigError(f"{' '.join(chosen.engine_flags)}: only vLLM has flags of its own. Give --engine vllm")
    return name


def _in_this_process(
    source: ModelSource, served: Sequence[Served], folders: Mapping[str, Path], chosen: ServeOptions, name: str
) -> tuple[Catalogue, EngineOf]:
    engine = chosen.engine if name == "openvino" else name  # auto may still find that OpenVINO cannot run it
    model = load_model(source, device=chosen.device, dtype=chosen.dtype, hold=chosen.load, engine=engine)
    if folders:
        model = load_adapters(model, folders)
    catalogue = catalogue_of(served, source, model.config, chosen.cache_tokens)

    def engine_of(deliver: Deliver) -> RequestEngine:
        sizes = {"batch_size": chosen.batch_size, "cache_tokens": chosen.cache_tokens}
        return LiveEngine(model, source.tokenizer, deliver, **sizes)

    return catalogue, engine_of


def _on_vllm(
    source: ModelSource, served: Sequence[Served], folders: Mapping[str, Path], chosen: ServeOptions
) -> tuple[Catalogue, EngineOf]:
    from mftcoder.app.serving.vllm_model import open_vllm
    from mftcoder.generation.vllm_engine import VllmLiveEngine

    config = read_model_config(source.weights, name=source.name, trust_remote_code=source.trust_remote_code)
    catalogue = catalogue_of(served, source, config, chosen.cache_tokens)
    engine, loras = open_vllm(
        source,
        folders,
        context=catalogue.context,
        dtype=chosen.dtype,
        batch_size=chosen.batch_size,
        flags=chosen.engine_flags,
    )
    return catalogue, lambda deliver: VllmLiveEngine(engine, source.tokenizer, deliver, loras)


def _adapters(source: ModelSource, base: Served, adapters: Mapping[str, Path]) -> tuple[list[Served], dict[str, Path]]:
    """What is served by the names of the adapters, and the peft folder of each by its name inside."""
    served: list[Served] = []
    folders: dict[str, Path] = {}
    taken = {base.name}
    for number, (name, path) in enumerate(adapters.items()):
        if name in taken or not name.strip():
            raise ConfigError(f"--adapter {name}={path}: the name is {'taken' if name.strip() else 'empty'}")
        taken.add(name)
        folder, own = path, base
        if (path / "config.yaml").is_file():
            run = open_run(path)
            if run.adapter is None:
                raise ModelError(
                    f"--adapter {name}={path}: the run trained all weights; serve it as a model of its own"
                )
            folder, own = run.adapter, served_model(run, name)
        _warn_of_another_base(name, folder, source)
        inner = f"adapter{number}"  # peft allows no dot in a name
        folders[inner] = folder
        served.append(replace(own, name=name, adapter=inner))
    return served, folders


def _warn_of_another_base(name: str, folder: Path, source: ModelSource) -> None:
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    trained = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    if trained and Path(trained).expanduser().resolve() != source.weights.resolve():
        warn(f"warning: adapter {name} was trained over {trained}; here it runs over {source.weights}")


def _tell(catalogue: Catalogue, address: tuple[Any, ...], keys: Sequence[str]) -> None:
    """Say what is served, and where."""
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    for served in catalogue.models:
        say(f"{served.name}: {'chat and completions' if served.template else 'completions; it has no chat template'}")
    fill = catalogue.fill
    say(
        f"fill in the middle: {f'{fill.prefix} ... {fill.suffix}' if fill else 'no, the vocabulary has no tokens for it'}"
    )
    say(
        f"serving http://{host}:{address[1]}/v1 with {'a key' if keys else 'no key'}, {catalogue.context:,} tokens of context"
    )
