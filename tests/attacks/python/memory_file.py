# expected: failed|out_of_memory
# Keeps 2 GiB in files in memory, which no limit of a process counts.
import os


def twice(xs):
    held = []
    for number in range(40):
        file = os.memfd_create(f"mft-{number}")
        for _ in range(52):
            os.write(file, bytes(1 << 20))
        held.append(file)
    return [2 * x for x in xs]
