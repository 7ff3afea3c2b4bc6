"""One row of gpu.py's table, or its preparation, in a process of its own: `gpu_row.py prepare|row SPEC`, the result as a JSON file.

`steps` rows build the run as `mft train` builds it and time its steps over batches that were made before; `mft train` rows run
the command itself and read its records. Both see the same samples; so do the peers in gpu_peers.py.
"""

import gc
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

TASKS = tuple(f"task{number}" for number in range(5))
WARMUP = 5
SHAPES = {
    "large": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}
VOCABULARY = {"large": 151_936, "tiny": 512}
ROWS, LENGTH, MEDIAN = 8, 4096, 350
TINY_ROWS, TINY_LENGTH, TINY_MEDIAN = 2, 128, 24
ALL_ROWS_NEED_GIB = 100  # of activations, masters and moments where nothing is recomputed; else two micro-batches
PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "torchao", "liger-kernel", "flash-attn", "flash-attn-3", "flash-attn-4", "trl",
    "unsloth",
)  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """What gpu.py asks for."""

    row: dict[str, Any]
    folder: str
    device: str
    tiny: bool
    result: str
    profile: bool
    machine: dict[str, Any]
    seconds: float
    steps: int

    @property
    def size(self) -> str:
        return "tiny" if self.tiny else "large"

    @property
    def length(self) -> int:
        return TINY_LENGTH if self.tiny else LENGTH

    @property
    def rows_of_step(self) -> int:
        return TINY_ROWS if self.tiny else ROWS

    @property
    def micro_batches(self) -> int:
        """The same for all rows of a table."""
        return int(self.machine["micro_batches"])

    @property
    def model(self) -> Path:
        return Path(self.folder) / "model"


def answer(spec: Spec, result: dict[str, Any]) -> None:
    """The result file, whole at once."""
    part = Path(f"{spec.result}.part")
    part.write_text(json.dumps(result))
    part.replace(spec.result)


# --- preparation


def prepare(spec: Spec) -> dict[str, Any]:
    """Model, tokenizer and data in the folder; what the machine is and how fast a large product runs."""
    device = torch.device(spec.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        return {"status": "failed", "reason": "torch sees no CUDA device. A dry run needs none: --device cpu --tiny"}
    facts = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    memory = facts.total_memory / 2**30 if facts else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    write_tokenizer(spec)
    weights = write_model(spec, device)
    micro_batches = 2 if device.type == "cuda" and memory < ALL_ROWS_NEED_GIB else 1
    return {
        "status": "ok",
        "device": facts.name if facts else "CPU",
        "compute_capability": [facts.major, facts.minor] if facts else None,
        "memory_gib": memory,
        "versions": {"python": sys.version.split()[0], "cuda": torch.version.cuda, **dict(map(version, PACKAGES))},
        "flop_per_second": product_speed(device),
        "micro_batches": micro_batches,
        "rows": spec.rows_of_step // micro_batches,
        "trained_share": write_data(spec),
        **weights,
    }


def version(package: str) -> tuple[str, str | None]:
    try:
        return package, metadata.version(package)
    except metadata.PackageNotFoundError:
        return package, None


def product_speed(device: torch.device) -> float:
    """FLOP/s of a large square bf16 product (8192 on a GPU, 256 on a CPU), the best of 3 means of 10."""
    size = 8192 if device.type == "cuda" else 256
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(4):  # the first warms up
        wait(device)
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        wait(device)
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - started))
    return best


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_tokenizer(spec: Spec) -> None:
    """A word is a token: `w17`, `w18`, ..."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    special = ("<unk>", "<|end|>", "<|user|>", "<|bot|>")
    words = {word: number for number, word in enumerate(special)}
    words |= {f"w{number}": number for number in range(len(special), VOCABULARY[spec.size])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    spec.model.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(spec.model / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "pad_token": "<|end|>"}
    (spec.model / "tokenizer_config.json").write_text(json.dumps(settings))


def write_model(spec: Spec, device: torch.device) -> dict[str, int]:
    """Random bf16 weights; how many of them stand in the layers' products, and in the head's."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        **SHAPES[spec.size], vocab_size=VOCABULARY[spec.size], num_key_value_heads=2, max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, rms_norm_eps=1e-6, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(spec.model)
    head = model.get_output_embeddings()
    linear = [m.weight.numel() for m in model.modules() if type(m) is torch.nn.Linear and m is not head]
    return {"product_weights": sum(linear), "head_weights": head.weight.numel()}


def write_data(spec: Spec) -> float:
    """Chats of one question and one answer, a file a task; the share of the tokens that an answer's mask trains."""
    random = np.random.default_rng(0)
    median = TINY_MEDIAN if spec.tiny else MEDIAN
    count = int((spec.steps + WARMUP + 3) * spec.rows_of_step * spec.length / median)
    lengths = np.clip(random.lognormal(np.log(median), 0.7, count), 12, spec.length).astype(int) - 4  # markers and end
    answers = np.clip((lengths * random.beta(4.6, 5.4, count)).astype(int), 2, lengths - 2)
    common = (
        np.minimum(random.zipf(1.1, int(lengths.sum())), VOCABULARY[spec.size] - 5) + 4
    )  # the loss has something to learn
    ends = np.cumsum(lengths)
    files = [(Path(spec.folder) / f"{task}.jsonl").open("w") for task in TASKS]
    for number, (end, length, answered) in enumerate(zip(ends, lengths, answers, strict=True)):
        words = [f"w{word}" for word in common[end - length : end]]
        turns = (("human", words[: length - answered]), ("bot", words[length - answered :]))
        record = {"chat_rounds": [{"role": role, "content": " ".join(said)} for role, said in turns]}
        files[number % len(TASKS)].write(json.dumps(record) + "\n")
    for file in files:
        file.close()
    return float((answers + 1).sum() / (lengths + 4).sum())


# --- rows


def run_config(spec: Spec) -> dict[str, Any]:
    """The row's config: what it says, over what all rows have in common."""
    row, folder = spec.row, Path(spec.folder)
    config = {
        "model": {"model_name_or_path": str(spec.model)},
        "tasks": {task: {"files": [str(folder / f"{task}.jsonl")]} for task in TASKS},
        "data": {
            "max_length": spec.length, "val_size": 0, "train_on": "all" if row["trained"] == "all" else "assistant",
            "role_markers": {"user": "<|user|>", "assistant": "<|bot|>"}, "cache_dir": str(folder / "cache"),
        },
        "train": {
            "max_steps": WARMUP + spec.steps + 3, "eval_strategy": "no", "save_strategy": "no", "report_to": [],
            "per_device_train_batch_size": spec.rows_of_step // spec.micro_batches, "lr_scheduler_type": "constant",
            "gradient_accumulation_steps": spec.micro_batches, "resume_from_checkpoint": False,
            "learning_rate": 1e-4 if row["config"]["adapter"]["type"] == "full" else 1e-3,
        },
        "backend": {"name": "local", "device": spec.device},
        "output_dir": str(folder / "runs" / f"{time.time_ns()}"),
    }  # fmt: skip
    for section, fields in row["config"].items():
        config[section] = {**config.get(section, {}), **fields}
    return config


class Clock:
    """When each step began and ended, on the device: the gaps between them are the device's waiting for the host."""

    def __init__(self, device: torch.device):
        self._device = device
        self._steps: list[tuple[Any, Any]] = []

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, each call of it a step."""

        def step(*args: Any, **keywords: Any) -> Any:
            started = self._mark()
            result = function(*args, **keywords)
            self._steps.append((started, self._mark()))
            return result

        return step

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait_ms(self, steps: int) -> float:
        """Mean milliseconds between the last `steps` steps and those before each."""
        pairs = list(zip(self._steps, self._steps[1:], strict=False))[-steps:]
        if self._device.type != "cuda":
            return float(np.mean([1e3 * (after[0] - before[1]) for before, after in pairs]))
        torch.cuda.synchronize(self._device)
        return float(np.mean([before[1].elapsed_time(after[0]) for before, after in pairs]))


def peak_gib(device: torch.device) -> float:
    """Of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measured(
    spec: Spec, *, seconds: float, real: int, trained: int, losses: Sequence[float], wait_ms: float | None, **more: Any
) -> dict[str, Any]:
    """A row's numbers: `real` and `trained` tokens ran in `seconds`; losses of all steps."""
    products, head = spec.machine["product_weights"], spec.machine["head_weights"]
    flop = (6 if spec.row["config"]["adapter"]["type"] == "full" else 4) * (products * real + head * trained)
    return {
        "status": "ok", "tokens_per_second": real / seconds, "flop_per_second": flop / seconds,
        "peak_gib": peak_gib(torch.device(spec.device)), "losses": list(losses), "wait_ms": wait_ms, **more,
    }  # fmt: skip


def run_steps(spec: Spec) -> dict[str, Any]:
    """Bare steps of the run that `mft train` would make of the config: by the first of its memory plans that fits."""
    from mftcoder.app.training.plan_choice import carrier, plans_of
    from mftcoder.config.schema import RunConfig
    from mftcoder.log import LOGGER
    from mftcoder.models.gpu_memory.plans import in_words
    from mftcoder.models.loading.resolve import resolve_model
    from mftcoder.registry import BACKENDS

    config = RunConfig.model_validate(run_config(spec))
    LOGGER.addHandler(logging.StreamHandler(sys.stderr))
    LOGGER.setLevel(logging.INFO)
    backend = BACKENDS.load(config.backend.name)(config.backend)
    backend.check(config)
    plans = plans_of(config, backend, None, resolve_model(config.model))
    for plan in plans:
        try:
            with carrier(backend, plan) as engine:
                return {**time_steps(spec, config, plan, engine), "plan": in_words(plan)}
        except torch.OutOfMemoryError:
            if plan is plans[-1]:
                raise
        gc.collect()
        if backend.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    raise AssertionError("there is a plan")


def time_steps(spec: Spec, config: Any, plan: Any, backend: Any) -> dict[str, Any]:
    """The steps of one plan, over batches that were made before."""
    from torch.nn.attention import current_flash_attention_impl

    from mftcoder.app.training.train import _build, _Start
    from mftcoder.balancing.base import TaskWeights
    from mftcoder.data.prepared.store import prepare as prepare_store
    from mftcoder.training.metrics import Callbacks
    from mftcoder.training.session import StopRequest
    from mftcoder.training.step import train_step

    device = torch.device(spec.device)
    start = _Start(config, prepare_store(config), None, None, StopRequest(), Callbacks())
    run = _build(start, plan, backend)
    run.metrics.__exit__()  # these steps write no records
    count = WARMUP + spec.steps
    batches = [run.train_loader.step(number) for number in range(count + 3)]
    batches = [batch.pin_memory() for batch in batches] if device.type == "cuda" else batches
    weights, clock = TaskWeights(np.asarray(run.progress.weights)), Clock(device)
    step = clock.timed(train_step)

    def train(numbers: range) -> list[Any]:
        rate = config.train.learning_rate
        return [step(run.model, batches[n], weights, run.objective, run.optimizer, rate, run.backend) for n in numbers]

    results = train(range(WARMUP))
    wait(device)
    started = time.perf_counter()
    timed = train(range(WARMUP, count))
    wait(device)
    seconds = time.perf_counter() - started
    return measured(
        spec,
        seconds=seconds,
        real=sum(result.real_tokens for result in timed),
        trained=sum(int(result.counts.tokens.sum()) for result in timed),
        losses=[result.objective for result in (*results, *timed)],
        wait_ms=clock.wait_ms(spec.steps - 1),
        attention=" ".join(filter(None, (run.model.attn_implementation, current_flash_attention_impl()))),
        waits_for_the_device=count_waits(device, lambda: train(range(count, count + 1))),
        **({"kernels": kernels(device, lambda: train(range(count + 1, count + 3)), 2)} if spec.profile else {}),
    )


def count_waits(device: torch.device, step: Callable[[], Any]) -> int | None:
    """How often the host waits for the device in a step, as far as torch notices."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def kernels(device: torch.device, steps: Callable[[], Any], count: int) -> list[dict[str, Any]]:
    """The ten most expensive kernels (operations on a CPU): milliseconds and calls a step, share of all of them."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        steps()
        wait(device)
    spent = [
        (event.key, event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
        for event in profiler.key_averages()
    ]
    total = max(sum(time for _, time, _ in spent), 1e-9)
    return [
        {"name": name, "ms": time / 1e3 / count, "share": time / total, "calls": calls / count}
        for name, time, calls in sorted(spent, key=lambda one: -one[1])[:10]
    ]


def run_mft_train(spec: Spec) -> dict[str, Any]:
    """The command itself, up to its last timed record; ends the process from a thread, before a checkpoint is written."""
    from mftcoder.cli import cli
    from mftcoder.training import loop

    config, device = run_config(spec), torch.device(spec.device)
    path = Path(spec.folder) / "config.json"
    path.write_text(json.dumps(config))
    clock = Clock(device)
    loop.train_step = clock.timed(loop.train_step)  # type: ignore[assignment]
    metrics, count = Path(config["output_dir"]) / "metrics.jsonl", WARMUP + spec.steps

    def watch() -> None:
        while True:
            time.sleep(0.05)
            lines = metrics.read_text().splitlines()[: count + 1] if metrics.is_file() else []
            if len(lines) > count:
                answer(spec, of_records([json.loads(line) for line in lines[:count]], spec, clock))
                os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    cli.main(["train", str(path)], prog_name="mft", standalone_mode=False)
    raise RuntimeError("mft train ended before its last timed record")


def of_records(records: list[dict[str, Any]], spec: Spec, clock: Clock) -> dict[str, Any]:
    """The numbers of a run from its metrics.jsonl."""
    timed = records[WARMUP:]
    return measured(
        spec,
        seconds=sum(record["seconds"] for record in timed),
        real=round(sum(record["tokens_per_second"] * record["seconds"] for record in timed)),
        trained=sum(sum(record["tokens"].values()) for record in timed),
        losses=[record["loss"] for record in records],
        wait_ms=clock.wait_ms(spec.steps - 1),
    )


def run_row(spec: Spec) -> dict[str, Any]:
    if spec.row["runs"] == "peer":
        from gpu_peers import run_peer

        return run_peer(spec)
    return run_steps(spec) if spec.row["runs"] == "steps" else run_mft_train(spec)


def failure(error: BaseException) -> dict[str, Any]:
    """A line that says what a row ran into."""
    from pydantic import ValidationError

    from mftcoder.errors import MftError

    first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if isinstance(error, torch.OutOfMemoryError) or "ran out of memory" in first:
        return {"status": "out of memory", "reason": first}
    if isinstance(error, ValidationError):
        first = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
    refused = isinstance(error, MftError | ValidationError | ImportError)
    return {"status": "refused" if refused else "failed", "reason": f"{type(error).__name__}: {first}"}


def main() -> None:
    spec = Spec(**json.loads(sys.argv[2]))
    signal.alarm(int(spec.seconds) + 10)  # if gpu.py is gone
    try:
        answer(spec, prepare(spec) if sys.argv[1] == "prepare" else run_row(spec))
    except BaseException as error:
        traceback.print_exc()
        answer(spec, failure(error))
        sys.stdout.flush()
        os._exit(1)  # threads and devices may be in any state


if __name__ == "__main__":
    main()
