"""Base models: their files, conversion, layers, loading, memory and export."""

import logging

# peft imports bitsandbytes where it is installed, which warns about optional kernels, and later about every cast of its inputs.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
