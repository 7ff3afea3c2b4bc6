# expected: failed|timeout
# A number that takes for ever to read as decimal.
def twice(xs):
    return 1 << (1 << 24)
