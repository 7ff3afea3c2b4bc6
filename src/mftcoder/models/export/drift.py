"""How much the predictions of a merged model differ from those of the adapter over the quantized base.

The merge adds to the base's original weights, but the adapter was trained over quantized ones. The drift is measured on a few fixed
lines of code and prose.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mftcoder.data.tokenizers.tokenizer import Tokenizer

TEXTS = (
    '''def median(values):
    """The middle of the values; the mean of the two middle ones if their number is even."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
''',
    """public static boolean isPrime(int n) {
    for (int d = 2; d * d <= n; d++) {
        if (n % d == 0) return false;
    }
    return n > 1;
}
""",
    "A test says what a function promises: for an empty list it returns zero, and it never changes the list it was given.",
)
TOLERATED = 0.02  # nats of divergence; two percent of a loss around one


@dataclass(frozen=True)
class Drift:
    """What the merge changed."""

    tokens: int
    trained_loss: float  # mean token loss over the quantized base
    merged_loss: float
    divergence: float  # mean KL(trained || merged) of the next token, nats
    changed: float  # fraction of positions whose most probable token differs

    @property
    def is_large(self) -> bool:
        """Whether the user should be warned."""
        return self.divergence > TOLERATED

    def __str__(self) -> str:
        return (
            f"loss {self.trained_loss:.4f} as trained, {self.merged_loss:.4f} merged, on {self.tokens} tokens; divergence "
            f"{self.divergence:.4f} nats, the most probable token differs in {self.changed:.1%}"
        )


@torch.no_grad()
def predictions(model: Any, tokenizer: Tokenizer) -> list[Tensor]:
    """Log-probabilities [T, V] of the next token for each text, float32 on the host."""
    device = next(model.parameters()).device
    texts = (torch.tensor([tokenizer.encode(text)], device=device) for text in TEXTS)
    return [model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(dim=-1).cpu() for ids in texts]


def measure_drift(trained: list[Tensor], merged: list[Tensor], tokenizer: Tokenizer) -> Drift:
    """The drift between the `predictions` of the trained and the merged model."""
    targets = torch.cat([torch.tensor(tokenizer.encode(text)[1:]) for text in TEXTS])
    before, after = (torch.cat([text[:-1] for text in found]) for found in (trained, merged))  # [N, V]
    return Drift(
        tokens=len(targets),
        trained_loss=torch.nn.functional.nll_loss(before, targets).item(),
        merged_loss=torch.nn.functional.nll_loss(after, targets).item(),
        divergence=torch.nn.functional.kl_div(after, before, log_target=True, reduction="batchmean").item(),
        changed=(before.argmax(dim=-1) != after.argmax(dim=-1)).float().mean().item(),
    )
