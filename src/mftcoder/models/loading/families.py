"""The model families that are known to train, one row each. `docs/models.md` is made from it, and one test trains them all.

Other families may train, too: any causal language model of transformers whose packed forward pass equals the separate forward
passes of its samples. That is checked at the start of every run.
"""

from dataclasses import dataclass
from typing import Literal

Way = Literal["native", "converted"]


@dataclass(frozen=True)
class Family:
    """Models of one architecture."""

    name: str
    model_type: str  # of their config.json
    examples: tuple[str, ...]  # Hub ids
    native_type: str  # transformers' architecture that trains; model_type itself where it is native
    note: str = ""

    @property
    def way(self) -> Way:
        """native, or converted once into the cache."""
        return "native" if self.model_type == self.native_type else "converted"


def _native(name: str, model_type: str, *examples: str, note: str = "") -> Family:
    return Family(name, model_type, examples, model_type, note)


EXPERTS = "all-linear reaches the experts and the router"
SHARED = "all-linear reaches dense layers, shared and other experts, and the router"
FAMILIES = (
    _native("Llama, Llama 2 and 3, CodeLlama, DeepSeek-Coder", "llama", "codellama/CodeLlama-7b-hf", "deepseek-ai/deepseek-coder-6.7b-base"),
    _native("Qwen 1.5, 2, 2.5 and their Coder models", "qwen2", "Qwen/Qwen2.5-Coder-1.5B"),
    _native("Qwen 3", "qwen3", "Qwen/Qwen3-1.7B"),
    _native("Qwen 1.5 and 2 MoE", "qwen2_moe", "Qwen/Qwen1.5-MoE-A2.7B", note="all-linear reaches attention and the shared expert"),
    _native("Qwen 3 MoE", "qwen3_moe", "Qwen/Qwen3-30B-A3B", note=EXPERTS),
    _native("DeepSeek-V2, DeepSeek-Coder-V2", "deepseek_v2", "deepseek-ai/DeepSeek-Coder-V2-Lite-Base", note=SHARED),
    _native("DeepSeek-V3", "deepseek_v3", "deepseek-ai/DeepSeek-V3-Base", note=f"{SHARED}; published in fp8: give the weights in bfloat16"),
    _native("Mistral, Codestral", "mistral", "mistralai/Mistral-7B-v0.1"),
    _native("Mixtral", "mixtral", "mistralai/Mixtral-8x7B-v0.1", note=EXPERTS),
    _native("StarCoder, SantaCoder", "gpt_bigcode", "bigcode/starcoderbase-1b"),
    _native("StarCoder 2", "starcoder2", "bigcode/starcoder2-3b"),
    _native("GPT-NeoX, Pythia", "gpt_neox", "EleutherAI/pythia-1b"),
    _native("Phi 1, 1.5, 2", "phi", "microsoft/phi-2"),
    _native("Phi 3, 3.5, 4", "phi3", "microsoft/Phi-3.5-mini-instruct"),
    _native("Gemma, CodeGemma", "gemma", "google/codegemma-2b"),
    _native("Gemma 2", "gemma2", "google/gemma-2-2b", note="eager attention: its scores are capped, which the fast paths do not do"),
    _native("Gemma 3 (text)", "gemma3_text", "google/gemma-3-1b-pt"),
    _native("GLM-4", "glm", "THUDM/glm-4-9b-hf"),
    _native("GPT-2", "gpt2", "openai-community/gpt2"),
    Family(
        "Qwen (the first)", "qwen", ("Qwen/Qwen-1_8B", "Qwen/Qwen-7B"), "qwen2",
        "exact up to seq_length tokens; its tokenizer is converted too",
    ),
    Family(
        "Baichuan-7B, Baichuan2-7B", "baichuan", ("baichuan-inc/Baichuan2-7B-Base",), "llama",
        "the 13B models have ALiBi and are refused",
    ),
    Family(
        "ChatGLM2, ChatGLM3, CodeGeeX2", "chatglm", ("THUDM/chatglm3-6b-base", "THUDM/codegeex2-6b"), "glm",
        "ChatGLM (the first) is refused",
    ),
    Family("Aquila, Aquila2", "aquila", ("BAAI/Aquila2-7B",), "llama"),
)  # fmt: skip
