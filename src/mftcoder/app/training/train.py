"""`mft train`: train a config into a run folder. The same command resumes a stopped run.

Builds store, model, adapter, optimizer, balancer, checkpoints and loop. The run folder holds config.yaml, versions.json, data.json,
metrics.jsonl, tensorboard/, checkpoints/ and, at the end, summary.json.
"""

import importlib.metadata
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mftcoder import __version__
from mftcoder.app.training.plan_choice import carrier, first_that_runs, plans_of
from mftcoder.balancing.base import TaskWeights, build_balancer
from mftcoder.config.effects import Run, fields_without_effect
from mftcoder.config.load import check_config, dump_yaml
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.loader import TrainLoader, ValidationLoader
from mftcoder.data.prepared.store import Store
from mftcoder.data.prepared.store import prepare as prepare_store
from mftcoder.data.records.curated import described
from mftcoder.errors import Interrupted, ModelError
from mftcoder.jsonl import write_json, write_text
from mftcoder.kernels import attention, flash
from mftcoder.kernels.limits import compile_problem, device_limits, model_limits, recompile_limit_reported
from mftcoder.kernels.linear.fp8 import lack_of_fp8
from mftcoder.log import OnProgress, no_progress, say, warn
from mftcoder.models.gpu_memory.recompute import Recomputation, recompute_layers
from mftcoder.models.layers.adapters import attach, restore, save_settings, save_weights, trainable_parameters
from mftcoder.models.layers.fp8 import check_recipe, multiply_in_fp8
from mftcoder.models.layers.quantize import IN_FP8
from mftcoder.models.loading import given
from mftcoder.models.loading.load import DTYPES, load_model
from mftcoder.models.loading.resolve import ResolvedModel, resolve_model, weights_of
from mftcoder.models.loading.suitability import check_suitability, check_texts
from mftcoder.registry import BACKENDS
from mftcoder.training.backends.base import Backend
from mftcoder.training.checkpoints.checkpoint import (
    Checkpoint,
    Progress,
    rows_of_step,
    set_random_state,
)
from mftcoder.training.checkpoints.resume import (
    checkpoint_store,
    checkpoint_to_resume,
    first_step_of_data,
    where_to_go_on,
)
from mftcoder.training.checkpoints.writer import CheckpointWriter, ModelFiles
from mftcoder.training.facts import check_metric, check_schedule, label_warnings, run_facts
from mftcoder.training.forward.isolation import attention_window, choose_attention, probe_samples, rounding_of
from mftcoder.training.forward.language_model import LanguageModel
from mftcoder.training.forward.shared_prompts import probe_pair, share_prompts
from mftcoder.training.loop import Summary, TrainingRun
from mftcoder.training.losses.objective import Objective
from mftcoder.training.metrics import Callbacks, MetricsLog, Record, ignore
from mftcoder.training.reference import pairs_of_run
from mftcoder.training.session import (
    StopRequest,
    compute_deterministically,
    device_memory_errors,
    sole_user,
    torch_state_kept,
)
from mftcoder.training.step import LossWindow

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class TrainResult(Summary):
    """How a run ended, and where its files are."""

    run_dir: Path

    @property
    def best_step(self) -> int | None:
        """The step with the best train.metric_for_best_model; None without a validation."""
        return self.best["step"]  # type: ignore[return-value]

    def rows(self) -> list[dict[str, Any]]:
        """One row per task for a DataFrame: its validation loss before, after, at the best step of the run, and its lowest one."""
        columns = {"before": "first", "after": "last", "best": "best", "lowest": "lowest", "lowest_step": "lowest_step"}
        losses = self.validation
        return [
            {"task": task, **{column: losses.get(when, {}).get(task) for column, when in columns.items()}}
            for task in losses.get("first", {})
        ]


@dataclass(frozen=True)
class _Start:
    """What a run starts from, with any memory plan."""

    config: RunConfig
    store: Store
    checkpoint: Checkpoint | None
    given_model: Any
    stop: StopRequest
    callbacks: Callbacks


@torch_state_kept()
def train(
    config: RunConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    allow_changes: bool = False,
    on_step: Callable[[Record], object] = ignore,
    on_validation: Callable[[Record], object] = ignore,
    on_checkpoint: Callable[[Path], object] = ignore,
    on_progress: OnProgress = no_progress,
) -> TrainResult:
    """Train, or resume a stopped run.

    `model` and `tokenizer` may be given as loaded objects of transformers. The model is changed in place. Unless adapter.type is
    full, its weights must be those of `model.model_name_or_path`.

    The callbacks run on rank 0, between steps. `on_step` gets the record of every logged step (train.logging_steps) and
    `on_validation` that of every validation, both as in metrics.jsonl. `on_checkpoint` gets the folder of a checkpoint once it is
    complete. An exception in a callback ends the run. After a signal the run saves and raises Interrupted.
    """
    check_config(config)
    callbacks = Callbacks(on_step, on_validation, on_checkpoint, on_progress)
    if config.train.deterministic:
        compute_deterministically()
    backend: Backend = BACKENDS.load(config.backend.name)(config.backend)
    backend.check(config)
    group = backend.group
    first = group.rank == 0
    as_run = config.model_copy(update={"backend": backend.config})
    for line in fields_without_effect(Run(as_run, group.world_size, backend.device.type == "cuda")):
        warn(line)
    if tokenizer is not None:
        folder = config.output_path / "tokenizer"
        named = config.model.model_copy(update={"tokenizer_name_or_path": str(folder)})
        config = config.model_copy(update={"model": named})
    if model is not None:
        _check_given(model, config, backend)
    resolved: ResolvedModel | None = None  # known on rank 0

    def check_model() -> None:
        nonlocal resolved
        if tokenizer is not None:
            given.save_tokenizer(tokenizer, folder)
        resolved = _checked_model(config)

    def prepared() -> Store:
        store = prepare_store(config, on_progress=on_progress)
        if resolved and (line := check_texts(resolved, config, *store.longest_text())):
            warn(line)
        for line in label_warnings(config, store):
            warn(line)
        return store

    if tokenizer is None and first:
        check_model()
    stop = StopRequest()
    with sole_user(config.output_path) if first else nullcontext(), group.joined():
        if tokenizer is not None:
            group.run_on_rank0(check_model)
        store = group.run_on_rank0(prepared)
        checkpoint = group.run_on_rank0(
            lambda: checkpoint_to_resume(config, store, group.data_world_size, allow_changes=allow_changes)
        )
        start = _Start(config, store, checkpoint, model, stop, callbacks)
        with given.lent(model), device_memory_errors(lambda: where_to_go_on(config)):
            summary = _train_with_first_that_runs(start, backend, resolved)
        if first:
            write_json(config.output_path / "summary.json", asdict(summary))
    if summary.stopped_because == "interrupted":
        folder = checkpoint_store(config).folder
        saved = (
            f"Step {summary.steps} is saved in {folder}. Go on" if summary.steps else "No step was done. Start again"
        )
        raise Interrupted(saved, requeue=stop.signal != signal.SIGINT)
    return TrainResult(**vars(summary), run_dir=config.output_path)


def _checked_model(config: RunConfig) -> ResolvedModel:
    """The model of the config. Checks, before anything is loaded, that it supports the config. Logs warnings."""
    check_recipe(config.train.fp8_recipe)
    model = resolve_model(config.model)
    for line in check_suitability(model, config):
        warn(line)
    return model


def _check_given(model: Any, config: RunConfig, backend: Backend) -> None:
    """ModelError if a loaded model cannot be trained in place of the model that the config names."""
    if backend.lockstep:
        raise ModelError(
            f"backend.name: {backend.config.name}: shares a model out while it loads it; give its name only"
        )
    if config.adapter.type == "full" and any(task.kind.needs_reference for task in config.tasks):
        raise ModelError("model: the reference of a preference task needs the model's name; give it only")
    given.check_settings(model, config.model)
    if config.adapter.type != "full":
        given.check_same_weights(model, config.model)


def _train_with_first_that_runs(start: _Start, backend: Backend, resolved: ResolvedModel | None) -> Summary:
    """Train with the fastest plan that fits, and with the next one if its first step runs out of memory."""
    steps_taken = 0

    def attempt(plan: RunConfig) -> Summary:
        nonlocal steps_taken
        with carrier(backend, plan) as engine:
            run = _build(start, plan, engine)
            if backend.group.rank == 0:
                _write_run_files(start.config, start.store)
            reported = recompile_limit_reported(warn) if backend.group.rank == 0 else nullcontext()
            with run.metrics, run.checkpoints, start.stop.listening(), reported:
                try:
                    return run.run()
                finally:
                    steps_taken = run.steps_taken

    alone = backend.group.world_size == 1 or not backend.lockstep  # otherwise the other ranks wait inside a pass
    plans = plans_of(start.config, backend, start.checkpoint, resolved)
    return first_that_runs(
        plans if start.given_model is None else plans[:1],  # a given model is changed in place
        attempt,
        may_go_on=lambda: alone and not steps_taken,
        step=start.checkpoint.progress.step + 1 if start.checkpoint else 1,
        device=backend.device,
    )


def _build(start: _Start, plan: RunConfig, backend: Backend) -> TrainingRun:
    """Everything that the loop needs, in the state of the checkpoint. `plan` is the config without open choices."""
    config, store, callbacks, checkpoint = start.config, start.store, start.callbacks, deepcopy(start.checkpoint)
    ranks: dict[str, Any] = {"rank": backend.group.data_rank, "world_size": backend.group.data_world_size}
    step_rows = rows_of_step(checkpoint.progress, config.model_dump(mode="json")) if checkpoint else None
    begun = checkpoint is not None and checkpoint.progress.data_fingerprint == store.fingerprint
    first_step = first_step_of_data(config, checkpoint.progress, begun=begun) if checkpoint else 0
    train_loader = TrainLoader(store, config, **ranks, step_rows=step_rows, first_step=first_step)
    validation_loader = ValidationLoader(store, config, **ranks)
    check_metric(config, validation_loader)
    check_schedule(config, train_loader.total_steps)
    weights = TaskWeights(np.asarray([task.weight for task in config.tasks]))
    balancer = build_balancer(config.balancer, run_facts(config, train_loader, validation_loader), config.task_names)
    torch.manual_seed(config.train.seed)
    model = _load_trainable(plan, backend, checkpoint, start.given_model)
    for line in _slower_ways(config, model, backend.device):
        say(line)
    _choose_attention(config, model, store, backend)
    _compile_layers(config, model, backend)
    _share_prompts(model, store)
    resumed = checkpoint is not None
    pairs = pairs_of_run(plan, store, model, backend, lambda: weights_of(plan.model), resumed=resumed, begun=begun)
    optimizer = backend.optimizer(trainable_parameters(model.module), plan.train)
    unobserved = LossWindow(len(config.tasks))
    progress = Progress(tokens_seen=[0] * len(config.tasks), weights=weights.values.tolist())
    torch.manual_seed(config.train.seed + backend.group.rank)
    if checkpoint:
        progress = checkpoint.progress
        if [task["weight"] for task in progress.config["tasks"]] != [task.weight for task in config.tasks]:
            progress.weights = weights.values.tolist()  # the new ones, until the balancer's next update
        balancer.load_state_dict(progress.balancer)
        unobserved.load_state_dict(progress.unobserved)
        state = checkpoint.optimizer_state(optimizer.allocate)
        optimizer.load_state_dict(state["optimizer"])
        set_random_state(state["random"], backend.group.rank, backend.group.world_size)
    progress.config, progress.data_fingerprint = plan.model_dump(mode="json"), store.fingerprint
    progress.rows_per_step, progress.first_step = train_loader.step_rows, first_step
    files = ModelFiles(model.module, save_weights, save_settings)
    return TrainingRun(
        config=config,
        model=model,
        optimizer=optimizer,
        objective=Objective.of(config.loss, train_loader.expected_units),
        balancer=balancer,
        backend=backend,
        train_loader=train_loader,
        validation_loader=validation_loader,
        checkpoints=CheckpointWriter(checkpoint_store(config), backend, config.train, files, callbacks.on_checkpoint),
        metrics=MetricsLog(
            config,
            total_steps=train_loader.total_steps,
            resumed_step=progress.step,
            callbacks=callbacks,
            rank=backend.group.rank,
        ),
        progress=progress,
        should_stop=start.stop,
        pairs=pairs,
        unobserved=unobserved,
        steps_behind=int(backend.device.type == "cuda"),
    )


def _load_trainable(
    config: RunConfig, backend: Backend, checkpoint: Checkpoint | None, given_model: Any
) -> LanguageModel:
    """The model with its trainable weights, on its device."""
    attention.register()
    implementation = _implementations(config, backend)[0]
    where: dict[str, Any] = {"attn_implementation": implementation, "device": backend.load_device}
    base = load_model(config.model, **where) if given_model is None else given.take(given_model, **where)
    module = attach(base, config.adapter)
    if config.train.fp8_recipe:
        emulate, kept = lack_of_fp8(backend.device) is not None, config.model.modules_to_not_convert
        multiply_in_fp8(module, config.train.fp8_recipe, emulate=emulate, kept=kept)
    if checkpoint:
        restore(module, checkpoint.model_dir)
    model = LanguageModel(
        module.train(), attn_implementation=implementation, num_tasks=len(config.tasks), context=backend.group.context
    )
    recompute_layers(model.decoder_layers(), Recomputation.of(config.train.gradient_checkpointing))
    backend.place(model, config.train)
    return model


def _slower_ways(config: RunConfig, model: LanguageModel, device: torch.device) -> Iterator[str]:
    """Lines about what runs slower than it could, with the same results, and why. Attention logs its own."""
    if config.adapter.type == "lora" and not config.adapter.peft_forward:
        from mftcoder.models.layers.lora_forward import kept_by_peft

        yield from kept_by_peft(model.module)
    dtype = DTYPES[config.model.dtype]
    limits = (*device_limits(device, dtype), *model_limits(device, model.causal_lm.config, dtype))
    yield from (str(limit) for limit in limits if limit.what != "FlashAttention")
    in_fp8 = config.model.quantization in IN_FP8 or config.train.fp8_recipe
    if in_fp8 and (lack := lack_of_fp8(device)):
        yield f"products in fp8 are emulated, at no gain in speed: {lack}"


def _compile_layers(config: RunConfig, model: LanguageModel, backend: Backend) -> None:
    """Compile the layers as the config says. `auto` compiles on a GPU that holds the whole model. ModelError if `true` is impossible."""
    wanted = config.train.torch_compile
    skipped = not wanted or (wanted == "auto" and (backend.device.type != "cuda" or backend.lockstep))
    problem = compile_problem(backend.device) or (model.compile_problem() if wanted == "auto" else None)
    if not skipped and not problem:
        model.compile_layers()
        return
    if not skipped:
        say(f"train.torch_compile: {problem}; the layers run uncompiled, which is slower")
    if config.train.fp8_recipe:
        say("train.fp8_recipe without train.torch_compile rounds in passes of its own, which cost what fp8 gains")


def _implementations(config: RunConfig, backend: Backend) -> tuple[str, ...]:
    """The configured attention, or the candidates for `auto`."""
    wanted, slices = config.model.attn_implementation, backend.group.context.size > 1
    return attention.candidates(backend.device, slices=slices) if wanted == "auto" else (wanted,)


def _choose_attention(config: RunConfig, model: LanguageModel, store: Store, backend: Backend) -> None:
    """Take the first attention that keeps two of the run's own samples apart. `auto` then takes the newest FlashAttention that works."""
    flash.use_torchs_own()
    tasks = [store.train(task) for task in range(len(store.tasks))]
    samples = probe_samples(tasks, attention_window(model.causal_lm.config))
    choose_attention(model, _implementations(config, backend), samples, say)
    if (config.model.attn_implementation, model.attn_implementation) == ("auto", "varlen"):
        newest = flash.use_newest(backend.device, flash.Heads.of(model.causal_lm.config), say)
        if newest:
            say(f"attention: {newest}, which gives what FlashAttention 2 gives on heads like this model's")


def _share_prompts(model: LanguageModel, store: Store) -> None:
    """Run the common prompt of a pair once, if there are pairs and the model can."""
    pairs = [samples for task in range(len(store.tasks)) if (samples := store.train(task)).has_pairs]
    if pairs:
        share_prompts(model, probe_pair(pairs[0]), rounding_of(model, model.causal_lm.dtype), say)


def _write_run_files(config: RunConfig, store: Store) -> None:
    versions = {"mftcoder": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}}
    machine = {"python": platform.python_version(), "platform": platform.platform(), "cpus": os.cpu_count()}
    devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    write_text(config.output_path / "config.yaml", dump_yaml(config))
    write_json(config.output_path / "versions.json", {**versions, **machine, "devices": devices})
    statistics = {name: asdict(counts) for name, counts in zip(store.tasks, store.statistics, strict=True)}
    about = {"tasks": statistics, "curation": described(store.tasks, store.training_files)}
    write_json(config.output_path / "data.json", {"fingerprint": store.fingerprint, **about})
