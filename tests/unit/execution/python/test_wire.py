"""Values that cross between a candidate and its judge."""

import collections
import datetime
import decimal
import fractions
import json
import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mftcoder.execution.python.wire import decode, encode


def crossed(value):
    return decode(json.loads(json.dumps(encode(value))))


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 2**63, -(10**5000), 1.5, -0.0, math.inf, "", "é\ud800", b"\x00\xff", bytearray(b"a"),
        [], [1, [2, (3,)]], (), (1, "a"), {1, 2}, frozenset({(1, 2)}), {}, {1: "a", (2, 3): [4]}, 1 + 2j,
        range(3, 9, 2), collections.deque([1, 2]), decimal.Decimal("1.10"), fractions.Fraction(1, 3),
        datetime.date(2024, 2, 29), datetime.datetime(2024, 1, 2, 3, 4), datetime.timedelta(days=1), int, str,
        numpy.float32(1.5), numpy.True_, numpy.longdouble(1) / 3, numpy.complex64(1 + 2j), numpy.uint64(2**64 - 1),
        collections.UserList([1, 2]), collections.UserDict({1: [2]}), collections.UserString("a"), {1: 2}.items(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_plain_values_arrive_as_they_were(value):
    arrived = crossed(value)
    assert arrived == value
    assert type(arrived) is type(value)


def test_nan_arrives():
    assert math.isnan(crossed(math.nan))


def test_an_array_arrives_with_its_shape():
    arrived = crossed(numpy.arange(6).reshape(2, 3))
    assert arrived.shape == (2, 3) and arrived.dtype == numpy.arange(1).dtype


@pytest.mark.parametrize(
    "array",
    [
        numpy.zeros((0, 3)), numpy.array(2.5), numpy.array(["a", "bcd"]), numpy.arange(6, dtype=">i4").reshape(3, 1, 2),
        numpy.array([1.5, numpy.nan], dtype=numpy.longdouble), numpy.array([2**64 - 1]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)  # fmt: skip
def test_arrays_of_plain_numbers_and_strings_arrive_unchanged(array):
    arrived = crossed(array)
    assert arrived.shape == array.shape and arrived.dtype == array.dtype.newbyteorder("=")
    assert numpy.array_equal(arrived, array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize("value", [numpy.zeros(1, [("a", "O")]), numpy.array([None]), numpy.array(["2024"], "M8[D]")])
def test_arrays_of_structures_objects_and_dates_cross_as_references(value):
    with pytest.raises(TypeError, match="cannot cross"):
        encode(value)


class AlwaysEqual(int):
    def __eq__(self, other):
        return True

    __hash__ = int.__hash__


def test_a_number_that_equals_everything_arrives_as_a_plain_number():
    arrived = crossed([AlwaysEqual(3)])
    assert arrived == [3] and arrived != [4]


@pytest.mark.parametrize("kind", [collections.OrderedDict, collections.Counter])
def test_dictionaries_arrive_as_plain_ones(kind):
    assert type(crossed(kind({"a": 1}))) is dict


def test_an_object_is_a_reference_or_an_error():
    with pytest.raises(TypeError, match="object"):
        encode(object())
    assert encode([object()], lambda value: "kept") == ["kept"]


def numpy_wire(code, shape, flat):
    return {"type": "numpy", "value": [code, shape, flat]}


@pytest.mark.parametrize(
    "wire",
    [
        {"type": "os.system", "value": "x"},
        {"type": "builtin", "value": "eval"},
        {"type": "builtin", "value": "__loader__"},
        {"value": 1},
        {"type": ["tuple"], "value": []},
        {"type": "tuple", "value": 3},
        {"type": "set", "value": [[1]]},
        {"type": "range", "value": [0, "9"]},
        {"type": "fractions.Fraction", "value": ["1e999999999", 1]},
        {"type": "fractions.Fraction", "value": [1, 0]},
        {"type": "decimal.Decimal", "value": "x"},
        numpy_wire("b1,O", [1], [1]),
        numpy_wire("f4,O", None, [140737488355328]),
        numpy_wire("O", [1], [1]),
        numpy_wire("O", [0], []),  # no item that could be of a wrong type
        numpy_wire("f4,O", [0], []),
        numpy_wire("V8", [1], [1]),
        numpy_wire("U400000000", [1], ["a"]),
        numpy_wire("<f8", [1], [1.0]),
        numpy_wire(["f8", "O"], [1], [1.0]),
        numpy_wire("f8", [1], ["1.0"]),
        numpy_wire("f8", [1], [[1.0]]),
        numpy_wire("f8", [1 << 40], [1.0]),
        numpy_wire("f8", [-1, -1], [1.0]),
        numpy_wire("f8", [1] * 100, [1.0]),
        numpy_wire("f8", None, [1.0, 2.0]),
        numpy_wire("i1", [1], [1000]),
        numpy_wire("f2", None, [65520]),
        numpy_wire("U", [200], ["x" * (1 << 20)] + [""] * 199),
    ],
    ids=lambda wire: str(wire)[:60],
)
def test_a_message_that_is_not_a_wire_value_is_refused(wire):
    with pytest.raises(ValueError):
        decode(wire)


TAGS = ["numpy", "tuple", "dict", "set", "frozenset", "keys", "items", "range", "complex", "integer", "builtin", "bytes", "bytearray", "reference"] + [
    f"collections.{name}" for name in ("deque", "UserList", "UserDict", "UserString")
] + ["fractions.Fraction", "decimal.Decimal", *(f"datetime.{name}" for name in ("timedelta", "datetime", "date", "time"))]  # fmt: skip
CODES = ["b1", "i1", "i8", "u8", "f2", "f8", "g", "c16", "U", "O", "V8", "f8,O", "<f8", "M8[s]", "S9", "U99999999"]
ATOMS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["int", "__loader__", "0x1f", "1e9", *CODES])
)  # fmt: skip


def tagged(inner):
    lists = st.lists(inner, max_size=4)
    shapes = st.none() | st.lists(st.integers(-2, 1 << 40), max_size=3) | st.just([1])
    arrays = st.builds(numpy_wire, st.sampled_from(CODES) | inner, shapes | inner, lists)
    values = st.builds(lambda tag, value: {"type": tag, "value": value}, st.sampled_from(TAGS), lists | inner)
    return lists | values | arrays


@given(st.recursive(ATOMS, tagged, max_leaves=12))
def test_any_message_is_a_value_of_a_known_type_or_a_value_error(wire):
    """What a hostile process may send: JSON of any shape with the tags that mean something."""
    try:
        value = decode(wire, lambda key: f"object {key}")
    except ValueError:
        return
    everything = [value]
    while everything:
        item = everything.pop()
        assert type(item).__module__ in {"builtins", "collections", "fractions", "datetime", "decimal", "numpy"}
        if isinstance(item, numpy.ndarray | numpy.generic):
            assert item.dtype.kind in "biufcU" and item.nbytes < 1 << 20
        elif isinstance(item, list | tuple | set | frozenset | collections.deque | collections.UserList):
            everything.extend(item)
        elif isinstance(item, dict | collections.UserDict):
            everything.extend((*item.keys(), *item.values()))
