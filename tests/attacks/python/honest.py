# expected: passed
# No attack: shows that the problem can be solved here.
def twice(xs):
    return [2 * x for x in xs]
