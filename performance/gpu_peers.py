"""The peers of gpu.py's table, on the samples of its other rows.

`transformers` is a bare loop with what a fast peer has: the model in bfloat16, rows packed without padding as TRL packs them
(position ids and cumulative lengths), Liger's kernels, peft's adapters, torch's fused AdamW. `TRL` and `unsloth` are SFTTrainer
with packing and Liger, on each one's own model. No peer recomputes activations: that is its fastest way.
"""

import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_row import WARMUP, Spec, measured, run_config, wait

LORA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def run_peer(spec: Spec) -> dict[str, Any]:
    """The row's numbers; ImportError if the peer is not installed."""
    name = spec.row["name"]
    if name.endswith("unsloth"):
        import unsloth  # noqa: F401  # wants to be first
    if name.endswith(("TRL", "unsloth")):
        return run_sft_trainer(spec, unsloth=name.endswith("unsloth"))
    return run_transformers(spec)


def store_and_config(spec: Spec) -> tuple[Any, Any]:
    from mftcoder.config.schema import RunConfig
    from mftcoder.data.prepared.store import prepare

    config = RunConfig.model_validate(run_config(spec))
    return prepare(config), config


def with_liger(spec: Spec) -> bool:
    """Whether Liger's kernels are there; they need a GPU."""
    return spec.device == "cuda" and importlib.util.find_spec("liger_kernel") is not None


def best_attention(spec: Spec) -> str:
    """flash-attn where it is installed, else the same kernels from torch, by our registration of them."""
    from mftcoder.kernels import attention

    attention.register()
    if spec.device != "cuda":
        return "sdpa"
    return "flash_attention_2" if importlib.util.find_spec("flash_attn") else "varlen"


def load_peer(spec: Spec, attention: str) -> Any:
    """transformers' model, and peft's adapter on it if the row has one."""
    from transformers import AutoModelForCausalLM

    settings = quantization_of(spec)
    model: Any = AutoModelForCausalLM.from_pretrained(
        spec.model, dtype=torch.bfloat16, attn_implementation=attention, **settings
    )
    model = model if settings else model.to(spec.device)
    model.config.use_cache = False
    if spec.row["config"]["adapter"]["type"] == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, lora_settings(spec))
        model.enable_input_require_grads()
    return model.train()


def lora_settings(spec: Spec) -> Any:
    from peft import LoraConfig

    adapter = spec.row["config"]["adapter"]
    return LoraConfig(
        r=adapter["lora_rank"], lora_alpha=adapter["lora_alpha"], target_modules=LORA_LAYERS, task_type="CAUSAL_LM"
    )


def quantization_of(spec: Spec) -> dict[str, Any]:
    if spec.row["config"].get("model", {}).get("quantization") is None:
        return {}
    from transformers import BitsAndBytesConfig

    bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    return {"quantization_config": bits, "device_map": {"": spec.device}}


def flat(batch: Any, device: str) -> dict[str, Any]:
    """A packed batch as transformers' flattening collator gives it: one long row, labels not yet shifted."""
    positions = batch.position_ids.flatten()
    starts = (positions == 0).nonzero().flatten().to(torch.int32)
    bounds = torch.cat([starts, torch.tensor([len(positions)], dtype=torch.int32)])
    longest = int(bounds.diff().max())
    labels = torch.cat([torch.tensor([-100]), batch.targets.flatten()[:-1]])
    tensors = {"input_ids": batch.input_ids.flatten(), "position_ids": positions, "labels": labels}
    made: dict[str, Any] = {name: tensor[None].to(device) for name, tensor in tensors.items()}
    if device == "cuda":
        lengths = bounds.to(device)
        made |= {"cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths, "max_length_q": longest, "max_length_k": longest}
    return made


def run_transformers(spec: Spec) -> dict[str, Any]:
    """A loop without a trainer's overhead."""
    from mftcoder.data.batches.loader import TrainLoader

    device = torch.device(spec.device)
    liger = with_liger(spec)
    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2

        apply_liger_kernel_to_qwen2()
    torch.manual_seed(0)
    attention = best_attention(spec)
    model = load_peer(spec, attention)
    store, config = store_and_config(spec)
    loader = TrainLoader(store, config)
    steps = [loader.step(number) for number in range(WARMUP + spec.steps)]
    batches = [[flat(batch, spec.device) for batch in step.micro_batches] for step in steps]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.train.learning_rate, weight_decay=0.0, fused=True)
    losses, seconds, started = [], 0.0, 0.0
    for number, micro_batches in enumerate(batches):
        if number == WARMUP:
            wait(device)
            started = time.perf_counter()
        of_step = []
        for batch in micro_batches:
            with torch.autocast(device.type, torch.bfloat16):
                loss = model(**batch).loss / len(micro_batches)
            loss.backward()
            of_step.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(torch.stack(of_step).sum())
    wait(device)
    seconds = time.perf_counter() - started
    timed = steps[WARMUP:]
    return measured(
        spec,
        seconds=seconds,
        real=sum(int((batch.task_ids >= 0).sum()) for step in timed for batch in step.micro_batches),
        trained=sum(int(step.counts.tokens.sum()) for step in timed),
        losses=[loss.item() for loss in losses],
        wait_ms=None,
        attention=attention,
        liger=liger,
    )


def samples_of(store: Any, spec: Spec, count: int) -> list[dict[str, Any]]:
    """`count` samples as Hugging Face records, in an order of their own; labels are not yet shifted."""
    places = [(task, index) for task in range(len(store.tasks)) for index in range(len(store.train(task)))]
    order = np.random.default_rng(0).permutation(len(places))
    chosen = [store.train(task).sample(index) for task, index in (places[i] for i in order[:count])]
    ids = [[*s.input_ids.tolist(), max(int(s.targets[-1]), 0)] for s in chosen]
    return [{"input_ids": of, "labels": [-100, *s.targets.tolist()]} for of, s in zip(ids, chosen, strict=True)]


def run_sft_trainer(spec: Spec, *, unsloth: bool) -> dict[str, Any]:
    """TRL's trainer over its own model or unsloth's."""
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Timer(TrainerCallback):
        """Notes when each step ended and how many real tokens had gone in by then."""

        marks: list[tuple[float, int, int]] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait(torch.device(spec.device))
            self.marks.append((time.perf_counter(), counted["real"], counted["trained"]))

    store, config = store_and_config(spec)
    counted = {"real": 0, "trained": 0}
    is_lora = spec.row["config"]["adapter"]["type"] == "lora"
    attention = best_attention(spec)
    model = unsloth_model(spec) if unsloth else load_for_trl(spec, attention)
    arguments = SFTConfig(
        output_dir=str(Path(spec.folder) / "trl"), max_steps=WARMUP + spec.steps, logging_steps=1, report_to="none",
        save_strategy="no", use_cpu=spec.device == "cpu", bf16=True, disable_tqdm=True, gradient_checkpointing=False,
        learning_rate=config.train.learning_rate, lr_scheduler_type="constant", max_length=spec.length, packing=True,
        per_device_train_batch_size=config.train.per_device_train_batch_size, use_liger_kernel=with_liger(spec) and not unsloth,
        gradient_accumulation_steps=config.train.gradient_accumulation_steps, dataset_kwargs={"skip_prepare_dataset": False},
    )  # fmt: skip
    records = samples_of(store, spec, sys.maxsize)
    trainer: Any = SFTTrainer(
        model, arguments, train_dataset=Dataset.from_list(records), processing_class=AutoTokenizer.from_pretrained(spec.model),
        peft_config=lora_settings(spec) if is_lora and not unsloth else None, callbacks=[timer := Timer()],
    )  # fmt: skip
    collator = trainer.data_collator

    def counting(features: list[dict[str, Any]]) -> Any:
        counted["real"] += sum(len(feature["input_ids"]) for feature in features)
        counted["trained"] += sum(label != -100 for feature in features for label in feature["labels"])
        return collator(features)

    trainer.data_collator = counting
    trainer.train()
    (started, real, trained), (ended, all_real, all_trained) = timer.marks[WARMUP - 1], timer.marks[-1]
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return measured(
        spec, seconds=ended - started, real=all_real - real, trained=all_trained - trained, losses=losses, wait_ms=None,
        attention=getattr(model.config, "_attn_implementation", None), liger=with_liger(spec) and not unsloth,
    )  # fmt: skip


def load_for_trl(spec: Spec, attention: str) -> Any:
    """The base; TRL attaches the adapter itself."""
    from transformers import AutoModelForCausalLM

    settings = quantization_of(spec)
    model = AutoModelForCausalLM.from_pretrained(
        spec.model, dtype=torch.bfloat16, attn_implementation=attention, **settings
    )
    return model if settings else model.to(spec.device)


def unsloth_model(spec: Spec) -> Any:
    """unsloth's model with its own adapter, by its documented calls."""
    from unsloth import FastLanguageModel

    is_full = spec.row["config"]["adapter"]["type"] == "full"
    model, _ = FastLanguageModel.from_pretrained(
        str(spec.model), max_seq_length=spec.length, dtype=torch.bfloat16, full_finetuning=is_full,
        load_in_4bit=bool(quantization_of(spec)),
    )  # fmt: skip
    if is_full:
        return model
    adapter = spec.row["config"]["adapter"]
    return FastLanguageModel.get_peft_model(
        model, r=adapter["lora_rank"], lora_alpha=adapter["lora_alpha"], target_modules=LORA_LAYERS, lora_dropout=0.0,
        use_gradient_checkpointing=False,
    )  # fmt: skip
