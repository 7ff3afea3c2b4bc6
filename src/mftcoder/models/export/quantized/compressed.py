"""A release in the format of compressed-tensors: what llmcompressor writes, with the model's own tokenizer and settings beside it."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mftcoder.errors import ModelError
from mftcoder.models.export.quantized.environment import run_job
from mftcoder.models.export.quantized.methods import GROUP_SIZES, Method
from mftcoder.models.export.quantized.texts import Measured, Texts
from mftcoder.models.files.weights import all_tensors, weight_files
from mftcoder.models.loading.stored_bits import is_stored_quantized

NOT_QUANTIZED = ("embed", "lm_head", "norm", "wte", "wpe")
WEIGHTS = "*.safetensors"


def choose_group(folder: Path, wanted: int | None) -> int:
    """How many weights of a row share a scale: the wanted number, or the largest usual one that divides all rows.

    ModelError if it does not divide the columns of a matrix.
    """
    tensors = all_tensors(weight_files(folder, allow_pickled=False)).values()
    columns = {
        tensor.name: tensor.shape[-1]
        for tensor in tensors
        if len(tensor.shape) == 2 and not any(word in tensor.name for word in NOT_QUANTIZED)
    }
    for size in (wanted,) if wanted else GROUP_SIZES:
        if all(count % size == 0 for count in columns.values()):
            return size
    size = wanted or GROUP_SIZES[-1]
    name, count = next((name, count) for name, count in columns.items() if count % size)
    fitting = [usual for usual in GROUP_SIZES if all(count % usual == 0 for count in columns.values())]
    advice = f"Choose --group-size {fitting[0]}" if fitting else "Choose int8 or gguf:F16"
    raise ModelError(f"{folder.name}: {name} has {count} columns, which groups of {size} do not divide. {advice}")


def write_compressed(
    python: Path,
    method: Method,
    whole: Path,
    out: Path,
    calibration: Sequence[Sequence[int]],
    texts: Texts,
    *,
    group: int,
    seed: int,
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Quantize the folder `whole` into `out`. Returns what was measured after loading it back, and the versions that did it."""
    job = {
        "model": str(whole),
        "out": str(out),
        "method": method.name,
        "group_size": group,
        "seed": seed,
        "calibration": [list(map(int, ids)) for ids in calibration],
    }
    with TemporaryDirectory(dir=whole.parent) as folder:
        measured, versions = run_job(python, job, texts, Path(folder))
    if not is_stored_quantized(out):
        raise ModelError(f"{method.name}: llmcompressor wrote a model without a quantization_config")
    for path in out.glob(WEIGHTS):
        path.chmod(0o644)  # safetensors makes files that only their owner can read
    for path in whole.iterdir():
        if (
            path.is_file()
            and path.suffix != ".safetensors"
            and path.name not in ("config.json", "model.safetensors.index.json")
        ):
            shutil.copyfile(path, out / path.name)
    return measured, versions
