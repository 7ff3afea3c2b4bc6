"""Numbers on their way from the device to the host: the copy starts at once, and only who reads it waits.

Reading a tensor on a GPU waits for all work that was given to it until then, the next steps included. A copy of its own, made
behind the work that computes the numbers, with a mark that says when it has arrived, waits for that work alone.
"""

import torch
from torch import Tensor


class HostCopy:
    """A few numbers of a tensor that is still being computed. On the CPU they are there already, and nothing is copied."""

    def __init__(self, values: Tensor):
        self._values = values.detach()
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event(
                blocking=True
            )  # who waits sleeps: other threads make batches and checkpoints
            self._arrived.record()

    def read(self) -> Tensor:
        """The numbers, on the CPU; waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values
