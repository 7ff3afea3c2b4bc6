# expected: failed
# Writes more than anyone can keep.
import os


def twice(xs):
    for _ in range(2000):
        os.write(1, b"x" * (1 << 20))
        print("y" * (1 << 16))
    return xs
