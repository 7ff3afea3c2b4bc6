"""The methods of quantization by name: their bits, how much loss each may cost, and which engines read what it writes."""

from dataclasses import dataclass

from mftcoder.errors import ConfigError
from mftcoder.models.export.quantized.gguf_file import BY_LLAMA_CPP, WRITTEN_HERE
from mftcoder.registry import did_you_mean

GGUF = "gguf"
GGUF_BITS = {
    "F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q6_K": 6.6, "Q5_1": 6, "Q5_0": 5.5, "Q5_K_M": 5.7, "Q5_K_S": 5.5, "Q4_1": 5,
    "Q4_0": 4.5, "Q4_K_M": 4.9, "Q4_K_S": 4.6, "IQ4_NL": 4.5, "IQ4_XS": 4.3, "Q3_K_L": 4.3, "Q3_K_M": 3.9, "Q3_K_S": 3.5, "Q2_K": 3.0,
}  # fmt: skip
"""Bits of a weight, scales included, as llama.cpp gives them; types of mixed files give the mean."""
GGUF_ENGINES = (
    "llama.cpp and what is built on it",
    "OpenVINO GenAI",
    "transformers (gguf_file)",
    "mft serve, chat, generate",
)
ALLOWED = ((16, 0.02), (8, 0.1), (5.5, 0.25), (4, 0.5), (3, 1.0))
"""From how many bits on which rise of a task's loss is accepted, in nats."""

COMPRESSED_ENGINES = ("vLLM", "transformers with compressed-tensors", "mft serve, chat, generate")
CALIBRATED = ("gptq", "awq")
"""Methods that look at what the layers read."""
GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class Method:
    """One way to quantize."""

    name: str  # as a user writes it
    bits: float  # of a weight
    engines: tuple[str, ...]  # that read the result

    @property
    def gguf_type(self) -> str:
        """The type of a .gguf file; empty for another method."""
        return self.name.partition(":")[2]

    @property
    def needs_calibration(self) -> bool:
        """Whether it looks at what the layers read for some texts."""
        return self.name in CALIBRATED

    @property
    def allowed_rise(self) -> float:
        """The largest rise of a task's loss with which a release still counts as whole, in nats."""
        return next((rise for bits, rise in ALLOWED if self.bits >= bits), 2.0)


METHODS = {
    **{
        name: Method(name, bits, COMPRESSED_ENGINES)
        for name, bits in {"gptq": 4.25, "awq": 4.25, "int8": 8.0, "fp8": 8.0}.items()
    },
    **{
        f"{GGUF}:{name}": Method(f"{GGUF}:{name}", GGUF_BITS[name], GGUF_ENGINES)
        for name in (*WRITTEN_HERE, *BY_LLAMA_CPP)
    },
}


def find_method(name: str) -> Method:
    """The method of this name, whatever its case. ConfigError with a suggestion if there is none."""
    by_case = {known.casefold(): method for known, method in METHODS.items()}
    if name.casefold() not in by_case:
        raise ConfigError(f"--quantize: unknown method '{name}'.{did_you_mean(name, METHODS)}")
    return by_case[name.casefold()]
