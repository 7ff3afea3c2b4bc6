# expected: timeout|failed
# An answer that never ends.
def twice(xs):
    while True:
        yield 1
