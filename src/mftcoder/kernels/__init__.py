"""The fast path: attention, cross entropy, linear products and AdamW, each with a twin in plain torch."""

from mftcoder.log import silence_libraries

silence_libraries()
