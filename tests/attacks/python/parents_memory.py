# expected: failed
# Reads or writes the memory of the process that started it.
import os


def twice(xs):
    for pid in (os.getppid(), 1):
        for way in ("rb", "r+b"):
            try:
                with open(f"/proc/{pid}/mem", way):
                    return [2 * x for x in xs]
            except OSError:
                pass
    return xs
