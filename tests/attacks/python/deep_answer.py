# expected: failed
# An answer nested deeper than any reader goes.
def twice(xs):
    answer = []
    for _ in range(100_000):
        answer = [answer]
    return answer
