# expected: failed|out_of_memory|timeout
# Takes memory that no limit of one process counts.
import mmap


def twice(xs):
    held = []
    for _ in range(64):
        block = mmap.mmap(-1, 1 << 27)
        for start in range(0, 1 << 27, 4096):
            block[start] = 1
        held.append(block)
    return [2 * x for x in xs]
