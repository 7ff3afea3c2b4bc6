"""A training step without a device, as far as that goes: shapes, dtypes and devices, and that nothing in it reads a number back.

Forward passes run on fake CUDA tensors, through the very branches that a GPU takes: variable-length attention, the loader's
batches copied over, the fused head's products. Autograd's engine wants a real device behind CUDA tensors, so backward passes and
whole steps run on meta tensors instead, through the same attention. Tensors of both kinds hold no numbers: whatever would make
the host wait for the device fails. Left out are the launches of Triton kernels, whose plain twins run here (for the optimizer
torch's fused AdamW); tests/unit/kernels compiles them.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from mftcoder.config.schema import BackendConfig, TrainConfig
from mftcoder.kernels import attention, cross_entropy
from mftcoder.models.layers.adapters import trainable_parameters
from mftcoder.training.backends import ddp
from mftcoder.training.backends.base import LocalBackend
from mftcoder.training.backends.ddp import SummedGradients
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.losses.objective import Objective, token_coefficients
from mftcoder.training.optimizer import MasterAdamW
from mftcoder.training.step import train_step
from tests.gpu.small import WEIGHTS, language_model, samples, step_data

MODES = [("full", None), ("lora", None), ("lora", "4bit"), ("lora", "fp8"), ("lora", "4bit-fp8")]
NAMES = ["full", "lora", "qlora", "lora over fp8", "qlora in fp8"]
has_cuda_build = pytest.mark.skipif(torch.version.cuda is None, reason="needs the CUDA build of torch")


class OnFakeDevice(TorchFunctionMode):
    """New tensors on a CUDA device are fake; the host's are as real as ever."""

    def __init__(self, fake: FakeTensorMode):
        super().__init__()
        self.fake = fake

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            return args[0]
        asked = [*args, *kwargs.values()]
        if not any(isinstance(one, torch.device | str) and str(one).startswith("cuda") for one in asked):
            return func(*args, **kwargs)
        with self.fake:
            if func is Tensor.to and not isinstance(args[0], FakeTensor):
                return torch.empty(args[0].shape, dtype=args[0].dtype, device="cuda")
            return func(*args, **kwargs)


def without_numbers(module: nn.Module, empty: Callable[[Tensor], Tensor]) -> None:
    """Every weight and buffer becomes what `empty` makes of it, the state of packed weights too."""
    for owner in module.modules():
        for name, weight in list(owner._parameters.items()):
            if weight is not None:
                moved = nn.Parameter(empty(weight.data), requires_grad=weight.requires_grad)
                state = getattr(weight, "quant_state", None)
                if state is not None:
                    moved.quant_state, moved.bnb_quantized = _packed_state(state, empty), True  # type: ignore[attr-defined]
                    owner.quant_state = moved.quant_state  # type: ignore[attr-defined]
                owner._parameters[name] = moved
        for name, buffer in list(owner._buffers.items()):
            if buffer is not None:
                owner._buffers[name] = empty(buffer)


def _packed_state(state: Any, empty: Callable[[Tensor], Tensor]) -> Any:
    for name, value in vars(state).items():
        if isinstance(value, Tensor):
            setattr(state, name, empty(value))
    if state.nested:
        _packed_state(state.state2, empty)
    return state


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention believes in a GPU of compute capability 9.0; kernels in Triton are their plain twins."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(attention, "varlen_problem", lambda *_: None)

    def twin(logits: Tensor, targets: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy.slope_in_torch(logits, targets, coefficients)

    monkeypatch.setattr(cross_entropy, "_losses_and_slope", twin)


def moved_model(
    folder: Path, adapter: str, quantization: str | None, empty: Callable[[Tensor], Tensor]
) -> LanguageModel:
    if quantization:
        pytest.importorskip("bitsandbytes")
    on_cpu = language_model(
        folder,
        torch.device("cpu"),
        torch.bfloat16,
        adapter=adapter,
        quantization=quantization,
        implementation="segments",
    )
    without_numbers(on_cpu.module, empty)
    model = LanguageModel(on_cpu.module, attn_implementation="varlen", num_tasks=2)
    model.set_attention("varlen")
    return model


@has_cuda_build
@pytest.mark.parametrize(("adapter", "quantization"), MODES, ids=NAMES)
def test_a_forward_pass_fits_together_on_a_cuda_device(
    small_llama: Path, adapter: str, quantization: str | None
) -> None:
    fake = FakeTensorMode(allow_non_fake_inputs=False)

    def empty(tensor: Tensor) -> Tensor:
        with fake:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

    model = moved_model(small_llama, adapter, quantization, empty)
    with OnFakeDevice(fake):
        hidden, losses = forward(model)
    assert (hidden.device.type, hidden.dtype) == ("cuda", torch.bfloat16)
    assert (losses.device.type, losses.dtype) == ("cuda", torch.float32) and losses.requires_grad
    with pytest.raises(DataDependentOutputException):
        losses.item()  # as any other number that a step would read would


def forward(model: LanguageModel) -> tuple[Tensor, Tensor]:
    """Hidden states of a batch, and the objective over it."""
    data = step_data(samples(seed=7))
    (batch,) = data.micro_batches
    hidden = model.hidden_states(batch.input_ids, batch.position_ids)
    objective = model.losses(batch, token_coefficients(batch, data.counts, WEIGHTS, Objective())).objective
    return hidden, objective


@pytest.mark.parametrize(("adapter", "quantization"), MODES, ids=NAMES)
def test_a_backward_pass_gives_every_trained_weight_a_gradient_of_its_kind(
    small_llama: Path, adapter: str, quantization: str | None
) -> None:
    model = moved_model(small_llama, adapter, quantization, lambda tensor: tensor.to("meta"))
    _, objective = forward(model)
    objective.backward()
    trained = [weight for weight in model.module.parameters() if weight.requires_grad]
    assert len(trained) == {"full": 21, "lora": 28}[adapter]
    for weight in trained:
        assert weight.grad is not None
        assert (weight.grad.shape, weight.grad.dtype, weight.grad.device.type) == (weight.shape, weight.dtype, "meta")


class Sent:
    """A sum over ranks under way; this process is the only rank."""

    def wait(self) -> None:
        """Over."""


@pytest.mark.parametrize("ranks", ["alone", "ddp"])
@pytest.mark.parametrize(("adapter", "quantization"), MODES, ids=NAMES)
def test_a_whole_step_over_micro_batches_fits_together(
    small_llama: Path, adapter: str, quantization: str | None, ranks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updated by torch's fused AdamW, which knows no meta tensors by itself but whose kernel does."""
    torch_optimizer = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(torch_optimizer, "_get_fused_kernels_supported_devices", lambda: ["meta"])
    model = moved_model(small_llama, adapter, quantization, lambda tensor: tensor.to("meta"))
    backend = LocalBackend(BackendConfig(device="cpu"))
    backend.device = torch.device("meta")
    named, summed = list(trainable_parameters(model.module)), None
    if ranks == "ddp":
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda values, **_: Sent())
        summed = SummedGradients([weight for _, weight in named], lambda _, collective: collective(), overlap=True)
    optimizer = MasterAdamW(named, TrainConfig(), gradients=summed)
    for seed in range(2):
        result = train_step(model, step_data(samples(seed), 2), WEIGHTS, Objective(), optimizer, 1e-3, backend)
    with pytest.raises(TypeError, match="meta"):
        _ = result.objective  # the steps have read no number: there is none


def compile_without_code(monkeypatch: pytest.MonkeyPatch, backend: str) -> Any:
    """Layers are compiled into graphs, which run as they are. Returns the compiler's counters."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compile_module(self, backend=backend, **options))
    return counters


def as_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself says that there is a GPU of compute capability 9.0, below the functions that the compiler knows."""
    monkeypatch.undo()
    facts = SimpleNamespace(name="H100", major=9, minor=0, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "_get_device_properties", lambda index: facts, raising=False)


@has_cuda_build
@pytest.mark.filterwarnings("ignore")  # the compiler warns about its own doings, and an error in their place ends it
@pytest.mark.parametrize(("adapter", "quantization"), MODES, ids=NAMES)
def test_compiled_layers_have_one_graph_on_a_cuda_device_whatever_the_rows_hold(
    small_llama: Path, adapter: str, quantization: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the attention's own checks of the device. LoRA's first layer is of its own kind: its input needs no gradient."""
    as_one_device(monkeypatch)
    counters = compile_without_code(monkeypatch, "eager")
    fake = FakeTensorMode(allow_non_fake_inputs=False)

    def empty(tensor: Tensor) -> Tensor:
        with fake:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

    model = moved_model(small_llama, adapter, quantization, empty)
    model.compile_layers()
    for seed in range(3):
        (batch,) = step_data(samples(seed)).micro_batches
        with OnFakeDevice(fake):
            model.hidden_states(batch.input_ids, batch.position_ids)
    assert dict(counters["graph_break"]) == {}
    assert counters["stats"]["unique_graphs"] == (1 if adapter == "full" else 2)


@pytest.mark.slow(reason="the compiler traces both passes of several kinds of layers, a quarter of a minute each")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("adapter", "quantization"), MODES, ids=NAMES)
def test_compiled_layers_have_one_graph_of_both_passes_through_the_attention_of_a_gpu(
    small_llama: Path, adapter: str, quantization: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = compile_without_code(monkeypatch, "aot_eager")
    model = moved_model(small_llama, adapter, quantization, lambda tensor: tensor.to("meta"))
    model.compile_layers()
    for seed in range(2):
        data = step_data(samples(seed))
        (batch,) = data.micro_batches
        coefficients = token_coefficients(batch, data.counts, WEIGHTS, Objective())
        model.losses(batch, coefficients).objective.backward()
    assert dict(counters["graph_break"]) == {}
    assert counters["stats"]["unique_graphs"] == (1 if adapter == "full" else 2)
    assert all(weight.grad is not None for weight in model.module.parameters() if weight.requires_grad)


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_sums_over_ranks_start_in_order_inside_the_last_pass(
    small_llama: Path, adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order in which a step gives a device its work. tests/unit/training/backends/test_ddp.py has two real ranks."""
    model = moved_model(small_llama, adapter, None, lambda tensor: tensor.to("meta"))
    monkeypatch.setattr(ddp, "BUCKET_BYTES", 1 << 12)
    named, events = list(trainable_parameters(model.module)), list[tuple[str, int]]()
    summed = SummedGradients([weight for _, weight in named], lambda _, collective: collective(), overlap=True)
    for place, (_, weight) in enumerate(named):
        weight.register_post_accumulate_grad_hook(lambda _, place=place: events.append(("gradient", place)))
    monkeypatch.setattr(
        torch.distributed, "all_reduce", lambda values, **_: events.append(("sum", values.numel())) or Sent()
    )
    data = step_data(samples(seed=8), 2)
    for number, batch in enumerate(data.micro_batches, start=1):
        coefficients = token_coefficients(batch, data.counts, WEIGHTS, Objective())
        summed.backward(model.losses(batch, coefficients).objective, last=number == 2)
    inside = events.copy()
    summed.sum_over_ranks()
    first, last = ([kind for kind, _ in part] for part in (inside[: len(named)], inside[len(named) :]))
    sums = [size for kind, size in inside if kind == "sum"]
    buckets = [[named[place][1] for place in group] for group in ddp._groups([weight for _, weight in named])]
    assert set(first) == {"gradient"} and last.count("gradient") == len(named)
    assert sums == [sum(ddp._aligned_size(weight) for weight in bucket) for bucket in buckets] and len(sums) > 3
    assert last.index("sum") < len(named) / 2  # while most gradients are still to come
    assert events[len(inside) :] == [("sum", len(named))]  # after the passes only who has gradients
