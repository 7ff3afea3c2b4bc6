"""Quantize a model folder with llmcompressor and measure the result: a program for an environment of its own, which has no mftcoder.

    python -P worker.py JOB.json

The job names the model, the folder to write, the method, calibration tokens, and the texts to measure. The result is written beside it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch


def recipe(method: str, group_size: int) -> list[Any]:
    """The modifiers of a method. The output head keeps its dtype."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier

    kept: dict[str, Any] = {"ignore": ["lm_head"]}
    if method == "fp8":
        return [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", **kept)]
    by_rows = {"num_bits": 8, "strategy": "channel"}
    by_groups = {"num_bits": 4, "strategy": "group", "group_size": group_size}
    # Symmetric for awq, too: transformers 5.23 cannot load packed zero points.
    weights = QuantizationArgs(type="int", symmetric=True, **(by_rows if method == "int8" else by_groups))
    kept["config_groups"] = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    if method == "awq":
        return [AWQModifier(), QuantizationModifier(**kept)]
    return [GPTQModifier(**kept) if method == "gptq" else QuantizationModifier(**kept)]


def quantize(job: dict[str, Any]) -> None:
    """Write the quantized model into `job["out"]`."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM

    if not torch.cuda.is_available():
        torch.Tensor.pin_memory = lambda self, *_: self  # type: ignore[method-assign]  # AWQModifier pins memory on every machine, which needs a GPU
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto")
    rows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in job["calibration"]]
    data: dict[str, Any] = {}
    if rows:
        longest = max(len(row["input_ids"]) for row in rows)
        data = {"dataset": Dataset.from_list(rows), "max_seq_length": longest, "num_calibration_samples": len(rows)}
        data["shuffle_calibration_samples"] = False
    torch.manual_seed(job["seed"])
    oneshot(model=model, tokenizer=job["model"], recipe=recipe(job["method"], job["group_size"]), **data)
    model.save_pretrained(job["out"], save_compressed=True)


@torch.inference_mode()
def losses(folder: str, texts: dict[str, list[tuple[list[int], list[int]]]]) -> dict[str, tuple[float, int]]:
    """The sum of the token losses of each task, and their number."""
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)
    found = {}
    for task, group in texts.items():
        total, tokens = 0.0, 0
        for ids, targets in group:
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0].cpu()
            wanted = torch.tensor(targets)
            total += float(
                torch.nn.functional.cross_entropy(logits.float(), wanted, ignore_index=-100, reduction="sum")
            )
            tokens += int((wanted != -100).sum())
        found[task] = (total, tokens)
    return found


def main(path: Path) -> None:
    """Do the job in `path` and write `result.json` beside it."""
    import importlib.metadata

    job = json.loads(path.read_text(encoding="utf-8"))
    quantize(job)
    packages = ("llmcompressor", "compressed-tensors", "transformers", "torch")
    result = {
        "losses": losses(job["out"], job["texts"]),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
    path.with_name("result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
