"""Python values as plain JSON and back, for what crosses between a candidate's process and its judge.

Atoms and lists are themselves in JSON; every other value is `{"type": ..., "value": ...}`. A trick of the candidate (an int that
equals everything, a list with a false length) arrives as the plain value beneath it. An object without a plain form stays in its
process and crosses as a number (`reference`). Types are recognized by name, so that the candidate's process, which is forked for
every program, imports only what it uses. `decode` reads what a hostile process wrote: it makes only values of the types listed
here, and checks their contents.
"""

import builtins
import importlib
import math
from collections.abc import Callable
from typing import Any

_ATOMS = frozenset({bool, str, float, type(None)})
_LARGE = 1 << 63  # larger integers cross as hexadecimal: parsing a huge decimal takes quadratic time

Wire = Any
Reference = Callable[[Any], Any]
_Plain = Callable[[Any], Any]


def refuse_reference(value: object) -> Wire:
    """The `reference` of a side that keeps no objects: TypeError."""
    raise TypeError(f"a {type(value).__name__} cannot cross between processes")


def _flat(value: dict) -> list:
    return [item for pair in dict.items(value) for item in pair]


# type: (its tag on the wire, how to take it apart into a list of values)
_OF_VALUES: dict[str, tuple[str, _Plain]] = {
    "builtins.tuple": ("tuple", tuple.__iter__),
    "builtins.dict": ("dict", _flat),
    "builtins.set": ("set", set.__iter__),
    "builtins.frozenset": ("frozenset", frozenset.__iter__),
    "builtins.dict_keys": ("keys", iter),
    "builtins.dict_items": ("items", iter),
    "builtins.range": ("range", lambda value: [value.start, value.stop, value.step]),
    "builtins.complex": ("complex", lambda value: [value.real, value.imag]),
    "collections.deque": ("collections.deque", iter),
    "collections.UserList": ("collections.UserList", lambda value: value.data),
    "collections.UserDict": ("collections.UserDict", lambda value: _flat(value.data)),
    "fractions.Fraction": ("fractions.Fraction", lambda value: [value.numerator, value.denominator]),
    "datetime.timedelta": ("datetime.timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
}
# type: (its tag on the wire, how to write it as text)
_OF_TEXT: dict[str, tuple[str, _Plain]] = {
    "builtins.bytes": ("bytes", bytes.hex),
    "builtins.bytearray": ("bytearray", bytearray.hex),
    "collections.UserString": ("collections.UserString", lambda value: str(value.data)),
    "decimal.Decimal": ("decimal.Decimal", str),
    "datetime.datetime": ("datetime.datetime", lambda value: value.isoformat()),
    "datetime.date": ("datetime.date", lambda value: value.isoformat()),
    "datetime.time": ("datetime.time", lambda value: value.isoformat()),
}


def encode(value: object, reference: Reference = refuse_reference) -> Wire:
    """`value` as JSON; a value without a plain form goes to `reference`."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, int):
        plain = int.__int__(value)
        return plain if -_LARGE < plain < _LARGE else {"type": "integer", "value": hex(plain)}
    if kind is list:
        return [encode(item, reference) for item in value]  # type: ignore[attr-defined]
    for base in kind.__mro__[:-1]:
        name = f"{getattr(base, '__module__', '')}.{base.__qualname__}"  # a class made by `type` may have no module
        if name in _OF_VALUES:
            tag, parts = _OF_VALUES[name]
            return {"type": tag, "value": [encode(item, reference) for item in parts(value)]}
        if name in _OF_TEXT:
            tag, text = _OF_TEXT[name]
            return {"type": tag, "value": text(value)}
    return _encode_rare(value, reference)


def _encode_rare(value: Any, reference: Reference) -> Wire:
    """Encode subclasses of the atoms, built-in types themselves, numpy's numbers and arrays; the rest as a reference."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, list):
        return [encode(item, reference) for item in list.__iter__(value)]
    if isinstance(value, type) and (name := value.__name__) in vars(builtins) and vars(builtins)[name] is value:
        return {"type": "builtin", "value": name}
    if getattr(type(value), "__module__", "") == "numpy" and (code := _numpy_code(value)):
        shape = list(value.shape) if hasattr(value, "__setitem__") else None
        flat = value.__array__().reshape(-1).tolist()  # as a plain array: a np.matrix cannot be flat
        items = list(map(str, flat)) if code in _NUMPY_TEXTS else [encode(item, reference) for item in flat]
        return {"type": "numpy", "value": [code, shape, items]}
    return reference(value)


_NUMBERS = frozenset({bool, int, float, complex})
_NUMPY_NUMBERS = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"])
_NUMPY_TEXTS = frozenset("gU")  # long double, whose numbers cross as strings, and strings
_NUMPY_TEXT_BYTES = 1 << 28  # of an array of strings, each of which takes as much as the longest


def _numpy_code(value: Any) -> str | None:
    """The tag of a numpy value's dtype; None for a structure, an object, a date."""
    kind = getattr(value, "dtype", None)
    names = (f"{kind.kind}{kind.itemsize}", kind.char, kind.kind) if kind is not None else ()
    return next((name for name in names if name in _NUMPY_NUMBERS | _NUMPY_TEXTS), None)


def _mapping(items: list) -> dict:
    return dict(zip(items[::2], items[1::2], strict=True))


def _builtin_type(name: str) -> type:
    found = vars(builtins).get(name)
    if not isinstance(found, type) or name.startswith("_"):
        raise ValueError(f"{name!r} is not a built-in type")
    return found


def _integers(items: list, count: int) -> list[int]:
    if len(items) != count or any(type(item) is not int for item in items):
        raise ValueError(f"expected {count} integers")
    return items


def _complex(items: list) -> complex:
    if len(items) != 2 or any(type(item) is not float for item in items):
        raise ValueError("expected two floats")
    return complex(*items)


def _library(name: str) -> Any:
    """The type `module.name`; imported on first use."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _numpy(items: list) -> Any:
    """A numpy scalar or array, so that `==` on it means here what it means in numpy.

    Only numbers, booleans and strings: with a structured dtype, bytes of an array could become pointers.
    """
    code, shape, flat = items
    content = frozenset({str}) if code in _NUMPY_TEXTS else _NUMBERS if code in _NUMPY_NUMBERS else frozenset()
    if not content or not isinstance(flat, list) or not all(type(item) in content for item in flat):
        raise ValueError(f"not a numpy array: dtype {code!r}")
    if code == "U" and 4 * len(flat) * max(map(len, flat), default=0) > _NUMPY_TEXT_BYTES:
        raise ValueError("an array of strings is too large")
    numpy = importlib.import_module("numpy")
    with numpy.errstate(over="raise", invalid="raise"):  # 70000 does not fit into f2
        array = numpy.array(flat, dtype=code)
    if shape is None and len(flat) == 1:
        return array[0]
    if not isinstance(shape, list) or math.prod(_integers(shape, len(shape))) != len(flat):
        raise ValueError(f"shape {shape!r} does not fit {len(flat)} items")
    return array.reshape(shape)


_FROM_VALUES: dict[str, _Plain] = {
    "numpy": _numpy,
    "tuple": tuple,
    "dict": _mapping,
    "set": set,
    "frozenset": frozenset,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "items": lambda items: dict(items).items(),
    "range": lambda items: range(*_integers(items, 3)),
    "complex": _complex,
    "collections.deque": lambda items: _library("collections.deque")(items),
    "collections.UserList": lambda items: _library("collections.UserList")(items),
    "collections.UserDict": lambda items: _library("collections.UserDict")(_mapping(items)),
    "fractions.Fraction": lambda items: _library("fractions.Fraction")(*_integers(items, 2)),
    "datetime.timedelta": lambda items: _library("datetime.timedelta")(*_integers(items, 3)),
}
_FROM_TEXT: dict[str, _Plain] = {
    "integer": lambda digits: int(digits, 16),
    "builtin": _builtin_type,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "collections.UserString": lambda text: _library("collections.UserString")(text),
    "decimal.Decimal": lambda text: _library("decimal.Decimal")(text),
    "datetime.datetime": lambda text: _library("datetime.datetime").fromisoformat(text),
    "datetime.date": lambda text: _library("datetime.date").fromisoformat(text),
    "datetime.time": lambda text: _library("datetime.time").fromisoformat(text),
}


def decode(wire: Wire, reference: Reference | None = None) -> Any:
    """The inverse of `encode`; ValueError for anything else. `reference` makes the proxy of an object on the other side."""
    try:
        return _decode(wire, reference)
    except (TypeError, ArithmeticError, AttributeError) as error:  # from a constructor
        raise ValueError(f"not a value of the wire format: {error}") from error


def _decode(wire: Wire, reference: Reference | None) -> Any:
    if isinstance(wire, list):
        return [_decode(item, reference) for item in wire]
    if not isinstance(wire, dict):
        return wire
    tag, inner = wire.get("type"), wire.get("value")
    if tag == "reference" and reference is not None:
        return reference(inner)
    if not isinstance(tag, str):
        raise ValueError(f"not a value of the wire format: {str(wire)[:80]}")
    if tag in _FROM_TEXT and isinstance(inner, str):
        return _FROM_TEXT[tag](inner)
    if tag in _FROM_VALUES and isinstance(inner, list):
        return _FROM_VALUES[tag]([_decode(item, reference) for item in inner])
    raise ValueError(f"not a value of the wire format: {str(wire)[:80]}")
