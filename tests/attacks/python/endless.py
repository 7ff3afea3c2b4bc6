# expected: timeout
# Runs for ever.
def twice(xs):
    while True:
        pass
