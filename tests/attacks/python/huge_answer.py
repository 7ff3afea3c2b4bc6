# expected: failed|out_of_memory|timeout
# An answer larger than the reader takes.
def twice(xs):
    return "x" * (200 << 20)
