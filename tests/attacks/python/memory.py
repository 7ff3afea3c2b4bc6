# expected: out_of_memory|timeout
# Takes all memory.
def twice(xs):
    return [bytearray(1 << 26) for _ in range(1 << 16)]
