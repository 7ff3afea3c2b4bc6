# expected: failed
# The same, as a class of its own.
class Anything:
    __eq__ = __le__ = __ge__ = __contains__ = lambda self, other: True
    __len__ = lambda self: 2
    __bool__ = lambda self: True
    __sub__ = __rsub__ = lambda self, other: 0


def twice(xs):
    return Anything()
