"""The requests of the OpenAI protocol and of llama.cpp's /infill, checked. A field that would change the text and that this server
cannot honour is refused; a field that never changes a text is accepted without effect.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from mftcoder.jsonl import has_half_character

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "dry_multiplier": (None, 0),
    "dynatemp_range": (None, 0),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None, "none"),
    "repeat_penalty": (None, 1),
    "repetition_penalty": (None, 1),
    "response_format": (None, {"type": "text"}),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "typical_p": (None, 1),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    "xtc_probability": (None, 0),
}
"""Fields that are not supported, and the values at which they change nothing."""
WITHOUT_EFFECT = frozenset(
    {
        "cache_prompt",
        "dry_allowed_length",
        "dry_base",
        "dry_penalty_last_n",
        "dynatemp_exponent",
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "repeat_last_n",
        "safety_identifier",
        "service_tier",
        "store",
        "timings_per_token",
        "user",
        "xtc_threshold",
    }
)
"""Fields that never change a text. Some are the details of a llama.cpp sampler that NEUTRAL refuses to turn on."""
INFILL_WITHOUT_EFFECT = frozenset(
    {"cache_prompt", "id_slot", "n_indent", "n_keep", "response_fields", "samplers", "t_max_prompt_ms"}
)
MESSAGE_FIELDS = ("name", "tool_calls", "function_call", "tool_call_id", "audio", "refusal")
"""Fields of a message that are not supported."""
SAMPLERS = {"top_k": "k", "top_p": "p", "min_p": "m", "temperature": "t"}
UNUSED_SAMPLERS = {"penalties": "e", "dry": "d", "top_n_sigma": "s", "typ_p": "y", "typical_p": "y", "xtc": "x"}
"""Names of llama.cpp's samplers and their letters. The unused ones change nothing at the values that NEUTRAL accepts."""
MOST_CHOICES = 128
MOST_STOP_WORDS = 64


class Checked(BaseModel):
    """A part of a request: a value of another type is refused, never converted, and so is a field that does not exist."""

    model_config = ConfigDict(
        strict=True, extra="forbid", str_max_length=1 << 26
    )  # a limit also refuses half characters


class StreamOptions(Checked):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False  # is about padding chunks, which this server does not do


class Asked(Checked):
    """What all requests have in common."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    """0 and -1: all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOP_WORDS)] | None = None
    stream: bool | None = None
    complete_word: bool = True

    @model_validator(mode="before")
    @classmethod
    def _only_what_can_be_honoured(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        if has_half_character(fields):
            raise ValueError("a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")
        unsupported = [name for name in fields if name in NEUTRAL and fields[name] not in NEUTRAL[name]]
        if unsupported:
            raise ValueError(f"{', '.join(unsupported)}: not supported by this server. Leave it out")
        dropped = WITHOUT_EFFECT | NEUTRAL.keys()
        return {name: value for name, value in fields.items() if name not in dropped or name in cls.model_fields}

    @field_validator("model")
    @classmethod
    def _no_name_is_none(cls, value: str | None) -> str | None:
        return value or None  # an editor without a configured model sends an empty name

    @field_validator("stop")
    @classmethod
    def _no_empty_stop_word(cls, value: str | list[str] | None) -> str | list[str] | None:
        if "" in ([value] if isinstance(value, str) else value or []):
            raise ValueError("an empty text ends no text. Leave it out")
        return value

    @property
    def stop_words(self) -> tuple[str, ...]:
        """The stop words."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def _not_zero(value: int) -> int:
    if not value:
        raise ValueError("0 asks for no text. Ask for 1 token or more, or with -1 for the rest of the context")
    return value


class Choices(Asked):
    """Requests that may ask for several texts."""

    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=-1), AfterValidator(_not_zero)] | None = None
    """-1, as llama.cpp's clients write it: the rest of the context."""
    samplers: str | list[str] | None = None
    """The order of llama.cpp's samplers. Without it the temperature comes first, as in vLLM."""
    stream_options: StreamOptions | None = None

    @field_validator("samplers")
    @classmethod
    def _order_is_followed(cls, value: str | list[str] | None) -> str | list[str] | None:
        known = SAMPLERS | UNUSED_SAMPLERS
        letters = [known.get(name, "?") for name in value] if isinstance(value, list) else value
        order = [letter for letter in letters or "" if letter not in UNUSED_SAMPLERS.values()]
        if value is not None and order != list(SAMPLERS.values()):
            raise ValueError("the only order here is top_k, top_p, min_p, temperature. Leave it out")
        return value


class TextPart(Checked):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class ChatMessage(Checked):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @model_validator(mode="before")
    @classmethod
    def _only_what_can_be_honoured(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        unsupported = [name for name in MESSAGE_FIELDS if fields.get(name) not in (None, [])]
        if unsupported:
            raise ValueError(f"{', '.join(unsupported)}: not supported by this server. Leave it out")
        return {name: value for name, value in fields.items() if name not in {*MESSAGE_FIELDS, "annotations"}}

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Choices):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> "ChatRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens: differs from max_completion_tokens. Give one of them")
        return self

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs to be true")
        return self


class CompletionRequest(Choices):
    """POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _best_of_all_is_all(self) -> "CompletionRequest":
        if self.best_of not in (None, self.n or 1):
            raise ValueError("best_of: not supported by this server. Leave it out")
        return self


class ExtraFile(Checked):
    """Another file that the model should know."""

    text: str
    filename: str = ""
    time: Any = None  # when the editor took it; without effect


class InfillRequest(Asked):
    """POST /infill of llama.cpp's server. Greedy unless a temperature is given."""

    input_prefix: str
    input_suffix: str
    input_extra: list[ExtraFile] = []
    prompt: str = ""
    n_predict: Annotated[int, Field(ge=-1)] = -1
    t_max_predict_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_effect(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        if fields.get("temperature") and fields.get("samplers"):
            raise ValueError("samplers: not supported by this server together with a temperature. Leave one out")
        return {name: value for name, value in fields.items() if name not in INFILL_WITHOUT_EFFECT}
