# expected: failed
# Wrong answers, and a good ending.
import atexit
import os

atexit.register(lambda: os._exit(0))


def twice(xs):
    return xs
