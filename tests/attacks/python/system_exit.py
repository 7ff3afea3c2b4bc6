# expected: failed
# SystemExit is no answer.
def twice(xs):
    raise SystemExit(0)
