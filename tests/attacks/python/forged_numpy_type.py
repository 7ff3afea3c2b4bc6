# expected: failed
# Claims on the wire that the bytes it sends are an array of object pointers.
import sys

MESSAGE = {"type": "numpy", "value": ["1u8,O", True, [[140737488355328, 1]]]}


def forge(real):
    return lambda value, reference=None: MESSAGE if value is None else real(value, reference)


for name, module in list(sys.modules.items()):
    if "mftcoder" in name and hasattr(module, "encode"):
        module.encode = forge(module.encode)


def twice(xs):
    return None
