"""`mft chat`: a conversation with one model, in the template of its training. What is printed and read is the command's business."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from mftcoder.app.serving.model_choice import choose_source, load_model, usage_of
from mftcoder.benchmarks.answers.extraction import fenced_code
from mftcoder.data.records.conversation import Message
from mftcoder.data.rendering.templates import Template, render_next
from mftcoder.data.rendering.tokenization import encode_segments
from mftcoder.errors import ConfigError, MftError
from mftcoder.execution.run_programs import Sandbox, run_script
from mftcoder.generation.engine import Sampling
from mftcoder.generation.live_engine import Request, stream_pieces
from mftcoder.jsonl import append_line


@dataclass(frozen=True)
class ChatOptions:
    """How a model is loaded, and how it answers. The sampling is that of the published quickstart."""

    system: str = ""
    template: str | None = None
    max_new_tokens: int = 512
    temperature: float = 0.1
    top_p: float = 0.95
    seed: int | None = None
    """None draws another one for each answer."""
    load: str | None = None
    engine: str = "auto"
    """transformers, openvino, or auto: OpenVINO on a CPU, where it is installed and can run the model."""
    checkpoint: str = "best"
    dtype: str | None = None
    device: str = "auto"
    trust_remote_code: bool = False


@dataclass
class Written:
    """How fast the last answer was written."""

    tokens: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    full: bool = False  # it was ended by the token limit

    @property
    def line(self) -> str:
        """The numbers in words."""
        rate = self.tokens / max(self.seconds, 1e-9)
        end = "; ended by the token limit" if self.full else ""
        return f"{self.tokens} tokens, {rate:,.1f} tokens/s, prompt of {self.prompt_tokens} tokens{end}"


@dataclass
class Chat:
    """A model, its template and the conversation so far."""

    model: Any
    tokenizer: Any
    template: Template
    end_ids: frozenset[int]
    tail: str
    sampling: Sampling
    random_seed: bool
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    written: Written = field(default_factory=Written)

    def prompt_ids(self, question: str) -> list[int]:
        """The tokens that the model reads before it answers this question. ConfigError for bytes that are no text."""
        if any("\ud800" <= character <= "\udfff" for character in question + self.system):
            raise ConfigError("the question is not UTF-8 text: it holds bytes that are no characters")
        opening = [Message("system", self.system, False)] if self.system else []
        chat = [*opening, *self.messages, Message("user", question, False)]
        ids: list[int] = encode_segments(self.tokenizer, [render_next(self.template, chat)])[0].ids.tolist()
        return ids

    def answer(self, question: str) -> Iterator[str]:
        """The answer, as it is written. Question and answer join the conversation, also where the caller stops early."""
        ids = self.prompt_ids(question)
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if context and len(ids) >= context:
            raise MftError(
                f"the conversation has {len(ids):,} tokens, the model only {context:,} positions. Ask for less, or begin anew with /reset"
            )
        if self.random_seed:
            self.sampling = replace(self.sampling, seed=time.time_ns())
        request = Request(ids, self.sampling, self.end_ids, tail=self.tail)
        text, begin = "", time.monotonic()
        self.written = Written(prompt_tokens=len(ids))
        try:
            pieces = stream_pieces(self.model, self.tokenizer, request, batch_size=1, cache_tokens=context or 1 << 20)
            for piece in pieces:
                text += piece.text
                full = piece.finish_reason == "length"
                self.written = Written(piece.generated, time.monotonic() - begin, len(ids), full)
                yield piece.text
        finally:
            if text.strip():
                self.messages += [Message("user", question, False), Message("assistant", text, False)]

    def reset(self) -> None:
        """Forget the conversation; the system message stays."""
        self.messages.clear()

    def set(self, assignment: str) -> None:
        """Change a sampling setting: `temperature=0.7`. ConfigError for what is none."""
        name, _, value = assignment.partition("=")
        if name not in _BOUNDS:
            raise ConfigError(f"/params {assignment}: give NAME=VALUE with one of {', '.join(_BOUNDS)}")
        kind, low, high = _BOUNDS[name]
        try:
            number = kind(value)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise ConfigError(f"/params {assignment}: must be from {low:g} to {high:g}")
        self.random_seed = self.random_seed and name != "seed"
        self.sampling = replace(self.sampling, **{name: number})

    def save(self, path: Path) -> None:
        """Append the conversation to a .jsonl file, as a record that `mft train` reads. ConfigError for another file, or nothing to save."""
        if not self.messages:
            raise ConfigError("/save: the conversation is empty")
        if path.suffix != ".jsonl":
            raise ConfigError(f"/save {path}: the name must end in .jsonl, so that mft train reads it")
        opening = [Message("system", self.system, False)] if self.system else []
        record = {"messages": [{"role": one.role, "content": one.content} for one in [*opening, *self.messages]]}
        try:
            append_line(path.expanduser(), orjson.dumps(record))
        except (OSError, RuntimeError) as error:  # RuntimeError: ~ and a user without a home
            raise ConfigError(
                f"/save {path}: cannot be written: {getattr(error, 'strerror', None) or error}"
            ) from error

    def run_last_code(self, sandbox: Sandbox) -> str:
        """What the last code block of the last answer prints, run in the sandbox. ConfigError if there is none in Python."""
        last = next((one.content for one in reversed(self.messages) if one.role == "assistant"), "")
        blocks = fenced_code(last)
        if not blocks:
            raise ConfigError("/run: the last answer has no code block")
        language, code = blocks[-1]
        if language.lower() not in ("", "python", "py", "python3"):
            raise ConfigError(f"/run: the last code block is in {language}; only Python is run here")
        return run_script(sandbox, code)


_BOUNDS: dict[str, tuple[Any, float, float]] = {
    "temperature": (float, 0, 100),
    "top_p": (float, 1e-9, 1),
    "max_new_tokens": (int, 1, 2**31 - 1),
    "seed": (int, -(2**63), 2**63 - 1),
}


def open_chat(model: str, **options: Any) -> Chat:
    """Load a model to talk to. `options` are the fields of ChatOptions. ConfigError if it has no chat template."""
    chosen = ChatOptions(**options)
    source = choose_source(model, checkpoint=chosen.checkpoint, trust_remote_code=chosen.trust_remote_code)
    usage = usage_of(source, chosen.template)
    if usage.template is None:
        raise ConfigError(f"{source.name}: has no chat template. Give the one of its training with --template NAME")
    sampling = Sampling(chosen.max_new_tokens, chosen.temperature, chosen.top_p, chosen.seed or 0)
    loaded = load_model(source, device=chosen.device, dtype=chosen.dtype, hold=chosen.load, engine=chosen.engine)
    return Chat(
        loaded,
        source.tokenizer,
        usage.template,
        usage.chat_end_ids,
        usage.tail,
        sampling,
        chosen.seed is None,
        chosen.system,
    )
