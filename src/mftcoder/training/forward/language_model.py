"""A causal language model in training: from a batch and its coefficients to the objective and the losses per task.

The decoder runs without its head; only the trained positions go through the head and the weighted cross entropy. All counting is done
on the host, so that the GPU never waits. If a group of ranks shares rows, each rank gets the whole rows, runs its slice of their
positions and counts the tokens of that slice. isolation.py verifies that packed samples do not see each other.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mftcoder.data.batches.loader import PackedBatch
from mftcoder.errors import ModelError
from mftcoder.kernels.attention import SampleLayout
from mftcoder.kernels.context_group import ALONE, ContextGroup
from mftcoder.kernels.cross_entropy import weighted_cross_entropy
from mftcoder.kernels.rotary import RotaryBySample
from mftcoder.training.forward.shared_prompts import CompactRow
from mftcoder.training.losses.focal import Focus, Reweighed, group_sums
from mftcoder.training.losses.preference import PairLosses, divergence_sums
from mftcoder.training.losses.router_loss import RouterLoss


@dataclass(frozen=True)
class BatchLosses:
    """The results of one forward pass; tensors on the model's device."""

    objective: Tensor  # scalar: sum of coefficient * loss, differentiable
    value: Tensor  # scalar: the value of the objective, without gradient
    loss_sum: Tensor  # f64 [K]: summed token losses of each task; of a preference task the losses of its pairs
    trained: int  # trained tokens in this rank's positions
    tokens: int  # tokens of samples that this rank ran, trained or not
    router: Tensor | None = None  # scalar: load-balancing loss of the routers, without gradient and coefficient
    rewards: Tensor | None = None  # f64 [6, K] sums of preference tasks; None without pairs
    rollouts: Tensor | None = None  # f64 [5, K] sums of tasks of sampled answers; None without them


class _ObjectivePass:
    """A forward pass that returns the objective alone, as the hooks of a backend need it, and keeps all its results."""

    losses: BatchLosses

    def __init__(self, run: Callable[[], BatchLosses]):
        self._run = run

    def __call__(self) -> Tensor:
        self.losses = self._run()
        return self.losses.objective


@dataclass(frozen=True)
class _TrainedTokens:
    """The N positions with a target in this rank's slice of a micro-batch; tensors on the model's device."""

    hidden: Tensor  # [N, H]
    targets: Tensor  # [N]
    coefficients: Tensor  # [N]
    tasks: Tensor  # [N]
    samples: Tensor  # [N] index of the sample in the batch
    num_samples: int  # of the whole batch; padding counts as one
    router: Tensor | None  # scalar: load-balancing loss of the routers, if requested


class LanguageModel:
    """Wraps a causal LM of transformers or peft, and uses its parameters."""

    def __init__(self, module: Any, *, attn_implementation: str, num_tasks: int, context: ContextGroup = ALONE):
        self.module = module
        self.context = context
        self.attn_implementation = attn_implementation
        self.num_tasks = num_tasks
        self.causal_lm: Any = module.get_base_model() if hasattr(module, "get_base_model") else module
        self.decoder: Callable[..., Any] = self.causal_lm.base_model
        self.run_forward: Callable[[Callable[[], Tensor]], Tensor] = (
            _call  # a backend may run each pass inside its hooks
        )
        self.device: torch.device = next(module.parameters()).device  # where it computes
        self.softcap, self.logit_scale = _logit_rule(self.causal_lm.config)
        self.router = RouterLoss.of(self.causal_lm)
        self._rotaries = RotaryBySample.of(self.causal_lm)
        self._compiled = False
        self.shares_prompts = False
        """Whether the common prompt of a pair runs once; `shared_prompts.py` turns it on after a check."""

    def losses(
        self, batch: PackedBatch, coefficients: Tensor, focus: Focus | None = None, router_weight: float = 0.0
    ) -> BatchLosses:
        """Objective and loss sums per task of one micro-batch; coefficients float32 [B, L] on the host.

        The objective contains `router_weight` times the routers' load-balancing loss.
        """
        forward_pass = _ObjectivePass(partial(self._losses, batch, coefficients, focus, router_weight))
        objective = self.run_forward(forward_pass)
        return replace(forward_pass.losses, objective=objective)

    def _losses(
        self, batch: PackedBatch, coefficients: Tensor, focus: Focus | None, router_weight: float
    ) -> BatchLosses:
        tokens = self._trained_tokens(batch, coefficients, with_router=router_weight > 0)
        found = self._reweighed(tokens, focus) if focus else None
        objective, token_losses = self._cross_entropy(tokens, found.coefficients if found else tokens.coefficients)
        value = found.value if found else objective.detach()
        router = None
        if tokens.router is not None:
            router = tokens.router.detach()
            objective, value = objective + router_weight * tokens.router, value + router_weight * router
        loss_sum = torch.zeros(self.num_tasks, dtype=torch.float64, device=token_losses.device)
        loss_sum.index_add_(0, tokens.tasks, token_losses.double())
        if found and found.loss_sum is not None:
            loss_sum = found.loss_sum
        ran = int(self.context.own(batch.task_ids >= 0).sum())
        rewards, rollouts = (found.rewards, found.rollouts) if found else (None, None)
        return BatchLosses(objective, value, loss_sum, len(tokens.targets), ran, router, rewards, rollouts)

    def _reweighed(self, tokens: "_TrainedTokens", focus: Focus) -> Reweighed:
        with torch.no_grad():
            losses = self._cross_entropy(tokens, tokens.coefficients)[1]
        return focus(losses, tokens.coefficients, tokens.samples, tokens.tasks, tokens.num_samples)

    def focal_sums(self, batch: PackedBatch, coefficients: Tensor) -> Tensor:
        """The sums [3, K] that TaskFocus needs of one micro-batch: c, c p and c l of each task."""

        def sums() -> Tensor:
            tokens = self._trained_tokens(batch, coefficients)
            found = self._cross_entropy(tokens, tokens.coefficients)[1]
            return group_sums(found, tokens.coefficients, tokens.tasks, self.num_tasks)

        return self.run_forward(sums)

    def divergence_sums(self, batch: PackedBatch, step: PairLosses) -> Tensor:
        """KTO's sums [K] of one micro-batch over its answers to other prompts."""

        def sums() -> Tensor:
            tokens = self._trained_tokens(batch, torch.zeros(batch.targets.shape))
            losses = self._cross_entropy(tokens, tokens.coefficients)[1]
            return divergence_sums(step, batch, losses, tokens.samples, tokens.num_samples)

        return self.run_forward(sums)

    def _trained_tokens(
        self, batch: PackedBatch, coefficients: Tensor, *, with_router: bool = False
    ) -> "_TrainedTokens":
        """One forward pass of the decoder, reduced to the positions with a target."""
        own = self.context.own
        trained = own(batch.targets != -100).flatten().nonzero().flatten()
        starts = (batch.position_ids == 0).flatten()
        samples = own((starts.cumsum(0) - 1).view_as(batch.targets))
        with_router = with_router and self.router is not None
        compact = CompactRow.of(batch) if self.shares_prompts else None
        if compact is None:
            output = self._decode(
                batch.input_ids, batch.position_ids, **({"output_router_logits": True} if with_router else {})
            )
        else:
            ids, positions = (x.flatten()[compact.kept][None] for x in (batch.input_ids, batch.position_ids))
            keywords = compact.layout.keywords(self.attn_implementation, self.device)
            output = self.decode(ids, positions, compact.layout, **keywords)
        hidden, router = output.last_hidden_state, None
        if self.router is not None and with_router:
            real = self.context.gather(self._to_device(own(batch.task_ids >= 0)))
            router = self.router(tuple(map(self.context.gather, output.router_logits)), real)
        return _TrainedTokens(
            hidden=hidden.flatten(0, 1).index_select(
                0, self._to_device(trained if compact is None else compact.places[trained])
            ),
            targets=self._to_device(own(batch.targets).flatten()[trained]),
            coefficients=self._to_device(own(coefficients).flatten()[trained]),
            tasks=self._to_device(own(batch.task_ids).flatten()[trained]),
            samples=self._to_device(samples.flatten()[trained]),
            num_samples=int(starts.sum()),
            router=router,
        )

    def _cross_entropy(self, tokens: "_TrainedTokens", coefficients: Tensor) -> tuple[Tensor, Tensor]:
        return weighted_cross_entropy(
            tokens.hidden, self.head, tokens.targets, coefficients, softcap=self.softcap, scale=self.logit_scale
        )

    def sample_losses(self, batch: PackedBatch) -> Tensor:
        """Summed token losses [S] of each segment of the batch in this rank's positions; padding counts as a segment."""

        def sums() -> Tensor:
            tokens = self._trained_tokens(batch, torch.ones(batch.targets.shape))
            found = self._cross_entropy(tokens, tokens.coefficients)[1].double()
            empty = torch.zeros(tokens.num_samples, dtype=torch.float64, device=found.device)
            return empty.index_add_(0, tokens.samples, found)

        return self.run_forward(sums)

    def token_losses(self, batch: PackedBatch) -> Tensor:
        """Losses [N] of the trained tokens in this rank's positions, in their order."""

        def found() -> Tensor:
            tokens = self._trained_tokens(batch, torch.ones(batch.targets.shape))
            return self._cross_entropy(tokens, tokens.coefficients)[1].double()

        return self.run_forward(found)

    def task_sums(self, batch: PackedBatch, focus: Focus | None = None) -> Iterator[tuple[int, Tensor]]:
        """`(task, summed losses)` for each task of the batch, differentiable, from one forward pass; `focus`: that of its pairs."""
        tokens = self._trained_tokens(batch, torch.ones(batch.targets.shape))
        coefficients = self._reweighed(tokens, focus).coefficients if focus else tokens.coefficients
        for task in batch.task_ids[batch.targets != -100].unique().tolist():
            of_task = coefficients * (tokens.tasks == task)
            yield task, self._cross_entropy(tokens, of_task)[0]

    @property
    def head(self) -> nn.Module:
        """The output layer that is in use: where it trains beside LoRA weights, peft wraps it, and turns it off with them."""
        head: Any = self.causal_lm.get_output_embeddings()
        if not hasattr(head, "original_module"):
            return head
        in_use: nn.Module = (
            head.original_module if head.disable_adapters else head.modules_to_save[head.active_adapters[0]]
        )
        return in_use

    @property
    def name(self) -> str:
        """The class of the model, for messages."""
        return type(self.causal_lm).__name__.removeprefix("FSDP")  # the prefix that fully_shard adds

    def decoder_layers(self) -> list[nn.Module]:
        count = self.causal_lm.config.num_hidden_layers
        stacks = [m for m in self.causal_lm.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        return list(stacks[0]) if stacks else []

    def hidden_states(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Last hidden states [B, L, H]; inputs on the host. Positions and lengths isolate the samples, without a mask."""
        hidden: Tensor = self._decode(input_ids, position_ids).last_hidden_state
        if self._compiled:
            return hidden.view(*input_ids.shape, -1)
        return self.context.whole_rows(hidden)[:, : input_ids.shape[1]]

    def _decode(self, input_ids: Tensor, position_ids: Tensor, **keywords: Any) -> Any:
        """The decoder's output for this rank's positions. The attention gets the layout of the samples in the whole rows.

        Compiled layers get all rows in one, so that the shape does not depend on the number of rows.
        """
        if self._compiled:
            input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
        layout = SampleLayout.of(self.context.padded(position_ids))
        return self.decode(
            self.context.own(input_ids),
            self.context.own(position_ids),
            layout,
            **layout.keywords(self.attn_implementation, self.device, compiled=self._compiled),
            **self.context.keywords(),
            **keywords,
        )

    def trained_hidden(self, batch: PackedBatch) -> Tensor:
        """The last hidden states [N, H] of the positions with a target."""
        return self._trained_tokens(batch, torch.zeros(batch.targets.shape)).hidden

    def sharing_problem(self) -> str | None:
        """Why this model cannot run the common prompt of a pair once; None if it can."""
        config = self.causal_lm.config.get_text_config()
        windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
        problems = (
            (self.attn_implementation != "segments", f"attention '{self.attn_implementation}' isolates whole texts"),
            (self._compiled, "its layers are compiled"),
            (self.context.size > 1, "ranks share rows"),
            (self.router is not None, "its routers are balanced over all positions"),
            (self._rotaries, "its rotary embedding depends on the length of a text"),
            (any(windows), "its attention has a window"),
            (_attention_dropout(self.causal_lm.config), "its attention has dropout"),
        )
        return next((why for applies, why in problems if applies), None)

    def decode(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        layout: SampleLayout,
        *,
        attention_mask: Tensor | None = None,
        **keywords: Any,
    ) -> Any:
        """The decoder's output, with the rotary frequencies for the samples of `layout`; inputs on the host."""
        for rotary in self._rotaries:
            rotary.layout = layout
        return self.decoder(
            input_ids=self._to_device(input_ids),
            position_ids=self._to_device(position_ids),
            attention_mask=attention_mask,
            use_cache=False,
            **keywords,
        )

    def _to_device(self, tensor: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(self.device, non_blocking=True)

    def compile_problem(self) -> str | None:
        """Why this model's layers cannot be compiled; None if they can."""
        if self.attn_implementation not in ("varlen", "segments"):
            return f"attention '{self.attn_implementation}' cannot be compiled over packed rows"
        if self.attn_implementation == "segments" and _attention_dropout(self.causal_lm.config):
            return "attention dropout cannot be compiled with attention 'segments'"
        if self.router is not None:
            return "the choice of experts would be recompiled in every step"
        if getattr(self.causal_lm, "is_loaded_in_8bit", False):
            return "layers in 8 bits cannot be compiled"
        return None

    def compile_layers(self) -> None:
        """Compile each decoder layer separately, for any number of positions: layers of the same kind share one graph.

        Counting on the host is not compiled. A layer that cannot be compiled runs uncompiled, with the compiler's warning.
        """
        if problem := self.compile_problem():
            raise ModelError(f"{self.name}: {problem}. Set train.torch_compile: false")
        torch._dynamo.config.allow_unspec_int_on_nn_module = True  # otherwise layer_idx makes one graph per layer
        torch._dynamo.config.specialize_float = True  # the scale of a LoRA layer becomes a constant of its graph
        torch._dynamo.config.suppress_errors = True
        for layer in self.decoder_layers():
            layer.compile(dynamic=True)
        self._compiled = True

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No dropout and no gradients inside the block; training mode is restored after it."""
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.module.train(was_training)

    def set_attention(self, implementation: str) -> None:
        """Change the attention. ModelError if the model does not have it, or if a package that it needs is not installed."""
        try:
            self.causal_lm.set_attn_implementation(implementation)
        except ValueError as error:
            raise ModelError(f"{self.name} has no attention '{implementation}'") from error
        except ImportError as error:
            raise ModelError(f"{self.name}: attention '{implementation}' is not installed: {error}") from error
        self.attn_implementation = implementation

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits of hidden states, with the family's scale and softcap."""
        logits: Tensor = self.head(hidden) * self.logit_scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def _call(forward_pass: Callable[[], Tensor]) -> Tensor:
    return forward_pass()


def _attention_dropout(config: Any) -> float:
    names = ("attention_dropout", "attn_pdrop", "attn_dropout")
    return max(float(getattr(config, name, None) or 0.0) for name in names)


def _logit_rule(config: Any) -> tuple[float | None, float]:
    """`(softcap, scale)` of the logits, for families that change them after the head (Gemma 2, Cohere, Granite)."""
    softcap = getattr(config, "final_logit_softcapping", None)
    if getattr(config, "logits_scaling", None):
        return softcap, 1.0 / config.logits_scaling
    return softcap, float(getattr(config, "logit_scale", None) or 1.0)
