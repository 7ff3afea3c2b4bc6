"""The flags of `accelerate launch --use_deepspeed --zero_stage 2 --offload_optimizer_device cpu ...` as fields of the backend section.

Accelerate passes its flags to the processes in environment variables. They choose the backend and are used for nothing else.
"""

import os
from typing import Any

from mftcoder.errors import ConfigError

STAGES = {"0": "ddp", "1": "deepspeed_zero2", "2": "deepspeed_zero2", "3": "deepspeed_zero3"}
"""Stage 1 shards less than stage 2 and takes the same steps."""
OFFLOADED = ("OPTIMIZER", "PARAM")


def launched_with_deepspeed() -> bool:
    """Whether `accelerate launch` was started with --use_deepspeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"


def deepspeed_backend() -> dict[str, Any]:
    """`name` and `offload` from accelerate's flags; stage 2 without a flag. ConfigError for what no backend does."""
    if os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        raise ConfigError(
            "--deepspeed_config_file: is not read. Say --zero_stage and the offload devices to accelerate launch instead"
        )
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    devices = {part: os.environ.get(f"ACCELERATE_DEEPSPEED_OFFLOAD_{part}_DEVICE", "none") for part in OFFLOADED}
    wrong = [
        f"--offload_{part.lower()}_device: {d} is not offered. Use cpu" for part, d in devices.items() if d == "nvme"
    ]
    if stage not in STAGES:
        wrong.append(f"--zero_stage: {stage} is none of {', '.join(STAGES)}")
    if wrong:
        raise ConfigError(*wrong)
    offload = {"OPTIMIZER": "optimizer"} | (
        {"PARAM": "all"} if stage == "3" else {}
    )  # DeepSpeed moves weights in stage 3
    moved = [what for part, what in offload.items() if devices[part] == "cpu" and stage != "0"]
    return {"name": STAGES[stage], "offload": moved[-1] if moved else "none"}
