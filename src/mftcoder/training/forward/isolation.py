"""Verify before a run that packing changes nothing: two training samples in one row must give the same results as each one alone.

The row runs three times: with the attention that is to be used; sample by sample with transformers' own masks (the right result);
and with a mask that lets samples see each other and everything before (the wrong result). A correct attention stays close to the
right result. One that leaks, or ignores a sliding window, is as far away as the wrong result, in any dtype.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mftcoder.data.prepared.columns import TaskSamples
from mftcoder.errors import ModelError, reason
from mftcoder.kernels.attention import SampleLayout
from mftcoder.training.forward.language_model import LanguageModel

REFERENCES = ("sdpa", "eager")  # attentions that transformers masks itself; the first uses less memory
LEAK = 0.5  # a result that is further away than this fraction of the wrong result's distance leaks
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 0.01}  # smaller relative distances are rounding
SHORTEST = 32  # positions of a sample that are enough for the check
CANNOT_RUN = (TypeError, ValueError, RuntimeError, AssertionError, ImportError)  # what kernels and their checks raise


def choose_attention(
    model: LanguageModel, implementations: Sequence[str], samples: tuple[Tensor, Tensor], say: Callable[[str], None]
) -> None:
    """Set the first implementation that runs and isolates samples, and tell `say` why others do not. ModelError if none does."""
    for number, implementation in enumerate(implementations, start=1):
        try:
            model.set_attention(implementation)
            verify_isolation(model, samples)
            return
        except ModelError as error:
            if number == len(implementations):
                hint = "Set model.attn_implementation: auto" if number == 1 else "No other attention is left to try"
                raise ModelError(f"{error}. {hint}") from error
            say(f"attention '{implementation}' does not fit, trying '{implementations[number]}': {error}")


def probe_samples(tasks: Sequence[TaskSamples], window: int | None) -> tuple[Tensor, Tensor]:
    """Token ids of two training samples: the shortest ones that are long enough for the check, and for the window if possible."""
    lengths = np.concatenate([task.lengths for task in tasks])
    owners = np.repeat(np.arange(len(tasks)), [len(task) for task in tasks])
    numbers = np.concatenate([np.arange(len(task)) for task in tasks])
    chosen = (tasks[owners[place]].sample(int(numbers[place])) for place in pick_lengths(lengths, window))
    first, second = (torch.from_numpy(sample.input_ids).long() for sample in chosen)
    return first, second


def pick_lengths(lengths: NDArray[np.integer[Any]], window: int | None) -> tuple[int, int]:
    """The indices of two lengths: the smallest that exceed the window by SHORTEST, or the largest. A single one is taken twice."""
    order = np.argsort(lengths, kind="stable")
    beyond = window if window and lengths[order[-1]] > window else 0
    first = min(int(np.searchsorted(lengths[order], beyond + SHORTEST)), max(len(order) - 2, 0))
    return int(order[first]), int(order[min(first + 1, len(order) - 1)])


def attention_window(model_config: Any) -> int | None:
    """The smallest attention window of the model's layers, in positions; None if no layer has one."""
    config = model_config.get_text_config()
    found = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((size for size in found if size), default=None)


def verify_isolation(model: LanguageModel, samples: tuple[Tensor, Tensor]) -> None:
    """ModelError unless the model's attention runs packed rows in training, and gives each sample the result that it has alone."""
    implementation = model.attn_implementation
    row = _Row.of(samples)
    try:
        _run_as_in_training(model, row)
        with model.evaluating():
            packed = model.run_forward(lambda: model.hidden_states(row.input_ids, row.position_ids))[0]
    except torch.OutOfMemoryError:
        raise
    except CANNOT_RUN as error:
        raise ModelError(
            f"{model.name} cannot run packed rows with attention '{implementation}': {reason(error)}"
        ) from error
    rounding = rounding_of(model, packed.dtype)
    right, wrong = _references(model, row, rounding)
    model.set_attention(implementation)
    if not torch.isfinite(right).all():
        return  # weights that are not finite prove nothing; the first step reports them
    for what, places in row.places(attention_window(model.causal_lm.config)):
        distance, leak = _distance(packed, right, places), _distance(wrong, right, places)
        if not distance <= max(LEAK * leak, rounding):
            raise ModelError(
                f"{model.name} with attention '{implementation}' does not {what}: the results differ by {distance:.2g} of their size "
                f"(without any isolation by {leak:.2g})"
            )


@dataclass(frozen=True)
class _Row:
    """Two samples in one row; tensors on the host."""

    input_ids: Tensor  # [1, L]
    position_ids: Tensor  # [1, L]
    lengths: tuple[int, int]

    @classmethod
    def of(cls, samples: tuple[Tensor, Tensor]) -> "_Row":
        positions = [torch.arange(len(sample)) for sample in samples]
        first, second = samples
        return cls(torch.cat(samples)[None], torch.cat(positions)[None], (len(first), len(second)))

    def places(self, window: int | None) -> list[tuple[str, slice]]:
        """Each possible fault, and the positions where it would show."""
        first = self.lengths[0]
        found = [("keep packed samples apart", slice(first, None))]
        if window and window < first:
            found.append((f"keep to its window of {window} positions", slice(window, first)))
        return found


def _run_as_in_training(model: LanguageModel, row: _Row) -> None:
    """Run with dropout if the model has any, because some kernels lack it. The run's random state is not changed."""
    was_training = model.module.training
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), torch.no_grad():
        try:
            model.module.train()
            model.run_forward(lambda: model.hidden_states(row.input_ids, row.position_ids))
        finally:
            model.module.train(was_training)


def _references(model: LanguageModel, row: _Row, rounding: float) -> tuple[Tensor, Tensor]:
    """Hidden states [L, H]: of the samples one by one, and of the row when each position sees everything before it."""
    problems = []
    for implementation in REFERENCES:
        try:
            model.set_attention(implementation)
            with model.evaluating():
                samples = row.input_ids[0].split(row.lengths)
                right = torch.cat([model.run_forward(partial(_alone, model, sample)) for sample in samples])
                wrong = model.run_forward(partial(_without_isolation, model, row))
                made, own = model.run_forward(partial(_both_logits, model, samples[0][:SHORTEST]))
            break
        except torch.OutOfMemoryError:
            raise
        except (ModelError, *CANNOT_RUN) as error:
            problems.append(f"{implementation}: {reason(error)}")
    else:
        raise ModelError(
            f"{model.name}: cannot verify that packed samples stay apart, because the model's own attention does not "
            f"run: {'; '.join(problems)}"
        )
    if not _distance(made, own, slice(None)) <= 2 * rounding and torch.isfinite(own).all():
        raise ModelError(f"{model.name} changes its logits after the head in a way that mftcoder does not know")
    return right, wrong


def _alone(model: LanguageModel, sample: Tensor) -> Tensor:
    """Hidden states [T, H] of one sample."""
    layout = SampleLayout(((len(sample),),))
    hidden: Tensor = model.decode(sample[None], torch.arange(len(sample))[None], layout).last_hidden_state
    return hidden[0]


def _without_isolation(model: LanguageModel, row: _Row) -> Tensor:
    """Hidden states [L, H] of the row without isolation and without windows."""
    total = sum(row.lengths)
    mask = torch.ones(total, total, dtype=torch.bool, device=model.device).tril()[None, None]
    if model.attn_implementation == "eager":  # adds the mask to the scores
        mask = torch.zeros(mask.shape, device=model.device).masked_fill(~mask, torch.finfo(torch.bfloat16).min)
    layout = SampleLayout((row.lengths,))
    hidden: Tensor = model.decode(row.input_ids, row.position_ids, layout, attention_mask=mask).last_hidden_state
    return hidden[0]


def _both_logits(model: LanguageModel, sample: Tensor) -> Tensor:
    """Logits [2, T, V] of one sample: as training computes them, and as the model itself does."""
    made = model.logits(_alone(model, sample))
    own = model.causal_lm(input_ids=sample[None].to(model.device), use_cache=False).logits[0]
    return torch.stack([made, own.to(made.dtype)])


def _distance(result: Tensor, right: Tensor, places: slice) -> float:
    """Root mean square over these positions of |result - right| / |right|."""
    result, right = result[places].float(), right[places].float()
    gap = (result - right).norm(dim=-1) / right.norm(dim=-1).clamp_min(1e-6)
    return gap.square().mean().sqrt().item()


def rounding_of(model: LanguageModel, dtype: torch.dtype) -> float:
    """The distance that counts as rounding. 8-bit layers round their inputs too: a small difference may become a step of 1/127."""
    return ROUNDING[torch.bfloat16 if getattr(model.causal_lm, "is_loaded_in_8bit", False) else dtype]
