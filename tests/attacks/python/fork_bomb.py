# expected: failed|timeout
# Starts processes for ever.
import os


def twice(xs):
    while True:
        os.fork()
