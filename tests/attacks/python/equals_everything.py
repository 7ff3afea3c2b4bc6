# expected: failed
# An answer that equals every expected value.
class Anything(list):
    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Anything()

    __hash__ = None


def twice(xs):
    return Anything()
