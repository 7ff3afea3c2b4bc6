"""Base models, adapters, merging and checksums of model folders."""

import logging

# peft imports bitsandbytes where it is installed, which warns of optional kernels, and later of every cast of its inputs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
