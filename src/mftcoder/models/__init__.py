"""Base models, adapters, merging and checksums of model folders."""

import logging

# peft imports bitsandbytes and torchao where they are installed. Both warn of kernels that they cannot load, bitsandbytes later of
# every cast of its inputs, and torchao makes torch warn of a deprecated call.
for noisy in ("bitsandbytes", "torchao", "torch.utils._pytree"):
    logging.getLogger(noisy).setLevel(logging.ERROR)
