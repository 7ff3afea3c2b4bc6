"""Where Triton kernels run in these tests: on a GPU, or in Triton's interpreter on the CPU."""

import importlib.util
import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or not (INTERPRETED or torch.cuda.is_available()),
    reason="needs a CUDA device, or triton and TRITON_INTERPRET=1",
)
