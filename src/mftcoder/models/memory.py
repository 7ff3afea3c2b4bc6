"""How much memory a run will take, from its config alone: weights, what the optimiser holds, activations, the head's chunk.

Goes in: a model config, the counts of its weights, the run config. Comes out: bytes a part. An estimate for choosing a batch
size: the activations of a decoder layer are counted from its shapes (a gated feed-forward is assumed), the allocator's
fragmentation and the CUDA context are not.
"""

from dataclasses import dataclass
from typing import Any

from mftcoder.config.schema import RunConfig
from mftcoder.kernels.cross_entropy import CHUNK_BYTES
from mftcoder.models.quantize import BYTES_PER_WEIGHT
from mftcoder.models.resolve import ParameterCount

BYTES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device."""

    weights: int
    optimizer: int  # gradients, both moments, float32 masters of low-precision weights
    activations: int  # of one micro-batch, kept for the backward pass
    head: int  # logits of one chunk and their gradient

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.optimizer + self.activations + self.head


def estimate_memory(config: RunConfig, model_config: Any, count: ParameterCount, device_type: str) -> MemoryEstimate:
    """Bytes that training takes on one device."""
    width = BYTES[config.model.dtype]
    per_trained_weight = 4 + 8 + (4 if width == 2 else 0)
    tokens = config.train.per_device_train_batch_size * config.data.max_length // config.backend.context_parallel_size
    layers = int(getattr(model_config, "num_hidden_layers", 0))
    per_layer = activation_elements(model_config)
    hidden = int(getattr(model_config, "hidden_size", 0))
    kept = hidden * layers + per_layer if config.train.gradient_checkpointing else per_layer * layers
    return MemoryEstimate(
        weights=weight_bytes(config, count),
        optimizer=count.trainable * per_trained_weight,
        activations=tokens * kept * width,
        head=2 * CHUNK_BYTES.get(device_type, CHUNK_BYTES["cpu"]),
    )


def weight_bytes(config: RunConfig, count: ParameterCount) -> int:
    """Bytes of the weights as they are held: those that model.quantization reaches in its bits, the rest in model.dtype."""
    width, quantization = BYTES[config.model.dtype], config.model.quantization
    if quantization is None:
        return count.total * width
    return (count.total - count.quantizable) * width + round(count.quantizable * BYTES_PER_WEIGHT[quantization])


def activation_elements(model_config: Any) -> int:
    """Numbers that one decoder layer keeps per token: two norms in and out, q, k, v, attention in and out, four of the MLP."""
    hidden = int(getattr(model_config, "hidden_size", 0))
    heads = int(getattr(model_config, "num_attention_heads", 1) or 1)
    groups = int(getattr(model_config, "num_key_value_heads", heads) or heads)
    inner = int(getattr(model_config, "intermediate_size", 0) or 4 * hidden)
    return 8 * hidden + 2 * hidden * groups // heads + 4 * inner
