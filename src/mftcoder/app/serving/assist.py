"""`mft assist`: the assistant over an endpoint, or over a model that runs in this process."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mftcoder.assistant.assistant import ROUNDS, Assistant
from mftcoder.assistant.model import DEFAULT_URL, MAX_TOKENS, Model, open_endpoint
from mftcoder.assistant.rounds import Proposal
from mftcoder.assistant.suites.trials import MUTANTS
from mftcoder.errors import ConfigError

__all__ = ["AssistOptions", "Assistant", "Proposal", "open_assistant"]

if TYPE_CHECKING:
    from mftcoder.serving.catalogue import Catalogue


@dataclass(frozen=True)
class AssistOptions:
    """Which model answers, and how hard it is tried."""

    url: str | None = None
    """Endpoint; None: that of `mft serve` on this machine."""
    model_name: str | None = None
    """The model's name at the endpoint; None: the first one that it lists."""
    model: str | None = None
    """A model folder, Hub id, .gguf file or run folder that is loaded in this process instead."""
    api_key_env: str | None = None
    folder: Path = Path()
    """Working folder: nothing outside it is read or written."""
    rounds: int = ROUNDS
    mutants: int = MUTANTS
    temperature: float = 0.2
    max_tokens: int = MAX_TOKENS
    timeout_seconds: float = 300
    """Seconds after which an endpoint's answer counts as failed."""
    template: str | None = None
    checkpoint: str = "best"
    load: str | None = None
    engine: str = "auto"
    """transformers, openvino, or auto: OpenVINO on a CPU, where it is installed and can run the model."""
    dtype: str | None = None
    device: str = "auto"
    trust_remote_code: bool = False


def open_assistant(**options: Any) -> Assistant:
    """An assistant. `options` are the fields of AssistOptions."""
    chosen = AssistOptions(**options)
    if chosen.model and (chosen.url or chosen.model_name):
        raise ConfigError("--model: loads a model here; leave out --url and --model-name")
    if chosen.model:
        model = _local(chosen)
    else:
        model = open_endpoint(
            chosen.url or DEFAULT_URL,
            chosen.model_name,
            api_key_env=chosen.api_key_env,
            temperature=chosen.temperature,
            max_tokens=chosen.max_tokens,
            timeout_seconds=chosen.timeout_seconds,
        )
    return Assistant(model, chosen.folder, rounds=chosen.rounds, mutants=chosen.mutants)


def serve_tools(assistant: Assistant, *, allow_apply: bool) -> None:
    """Serve the verbs as tools over stdin and stdout until the client closes them."""
    from mftcoder.assistant.mcp_tools import make_server

    make_server(assistant, allow_apply=allow_apply).run("stdio")


def _local(chosen: AssistOptions) -> Model:
    """A model in this process, rendered and generated as `mft serve` does."""
    from mftcoder.app.serving.model_choice import catalogue_of, choose_source, load_model, served_model
    from mftcoder.serving.local import LocalModel

    source = choose_source(str(chosen.model), checkpoint=chosen.checkpoint, trust_remote_code=chosen.trust_remote_code)
    served = served_model(source, source.name, chosen.template)
    loaded = load_model(source, device=chosen.device, dtype=chosen.dtype, hold=chosen.load, engine=chosen.engine)
    catalogue: Catalogue = catalogue_of([served], source, loaded.config)
    return LocalModel(loaded, catalogue, chosen.temperature, chosen.max_tokens)
