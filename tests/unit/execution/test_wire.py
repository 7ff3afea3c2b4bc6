"""Values that cross between a candidate and its judge."""

import collections
import datetime
import decimal
import fractions
import json
import math

import numpy
import pytest

from mftcoder.execution.wire import decode, encode


def crossed(value):
    return decode(json.loads(json.dumps(encode(value))))


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 2**63, -(10**5000), 1.5, -0.0, math.inf, "", "é\ud800", b"\x00\xff", bytearray(b"a"),
        [], [1, [2, (3,)]], (), (1, "a"), {1, 2}, frozenset({(1, 2)}), {}, {1: "a", (2, 3): [4]}, 1 + 2j,
        range(3, 9, 2), collections.deque([1, 2]), decimal.Decimal("1.10"), fractions.Fraction(1, 3),
        datetime.date(2024, 2, 29), datetime.datetime(2024, 1, 2, 3, 4), datetime.timedelta(days=1), int, str,
        numpy.float32(1.5), numpy.True_,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_plain_values_arrive_as_they_were(value):
    arrived = crossed(value)
    assert arrived == value
    assert type(arrived) is type(value)


def test_not_a_number_arrives():
    assert math.isnan(crossed(math.nan))


def test_an_array_arrives_with_its_shape():
    arrived = crossed(numpy.arange(6).reshape(2, 3))
    assert arrived.shape == (2, 3) and arrived.dtype == numpy.arange(1).dtype


class AlwaysEqual(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


def test_a_number_that_equals_everything_arrives_as_the_number_it_is():
    arrived = crossed([AlwaysEqual(3)])
    assert arrived == [3] and arrived != [4]


@pytest.mark.parametrize("kind", [collections.OrderedDict, collections.Counter])
def test_dictionaries_arrive_as_plain_ones(kind):
    assert type(crossed(kind({"a": 1}))) is dict


def test_an_object_is_a_reference_or_an_error():
    with pytest.raises(TypeError, match="object"):
        encode(object())
    assert encode([object()], lambda value: "kept") == ["kept"]


@pytest.mark.parametrize(
    "wire",
    [
        {"type": "os.system", "value": "x"},
        {"type": "builtin", "value": "eval"},
        {"value": 1},
        {"type": "tuple", "value": 3},
    ],
)
def test_what_is_no_wire_value_is_refused(wire):
    with pytest.raises(ValueError):
        decode(wire)
