# expected: failed
# Replaces the encoder of its own process by one that lies; it can still only send data.
import sys

for name, module in list(sys.modules.items()):
    for attribute in ("encode", "_encode", "decode", "_attempt", "_answer"):
        if hasattr(module, attribute) and "mftcoder" in name:
            setattr(module, attribute, lambda *_, **__: {"answer": [True]})


def twice(xs):
    return xs
