# expected: passed
# No attack: a list of the library's that is no list, of numbers that are no integers.
import collections
import fractions


def twice(xs):
    return collections.UserList([fractions.Fraction(2 * x) for x in xs])
