"""Python values as plain JSON and back, for answers that cross from a candidate's process to its judge.

Goes in: a value. Comes out: JSON where atoms and lists stand for themselves and all else is `{"type": ..., "value": ...}`.
Only plain data crosses. Whatever a candidate builds (an int that equals everything, a list that lies about its length)
arrives as the plain value beneath it; an object that has none stays behind and is sent as a number to ask after (`reference`).
Types are told by name, so that a candidate's process need not import what it does not use: a fork costs by what it carries.
"""

import builtins
import importlib
from collections.abc import Callable
from typing import Any

_ATOMS = frozenset({bool, str, float, type(None)})
_LARGE = 1 << 63  # larger integers go as hexadecimal: parsing a huge decimal takes quadratic time

Wire = Any
Reference = Callable[[Any], Any]
_Plain = Callable[[Any], Any]


def refuse_reference(value: object) -> Wire:
    """The `reference` of a side that keeps no objects: TypeError."""
    raise TypeError(f"a {type(value).__name__} cannot cross between processes")


def _flat(value: dict) -> list:
    return [item for pair in dict.items(value) for item in pair]


# type: (its name on the wire, how to take it apart into a list of values)
_OF_VALUES: dict[str, tuple[str, _Plain]] = {
    "builtins.tuple": ("tuple", tuple.__iter__),
    "builtins.dict": ("dict", _flat),
    "builtins.set": ("set", set.__iter__),
    "builtins.frozenset": ("frozenset", frozenset.__iter__),
    "builtins.dict_keys": ("keys", iter),
    "builtins.range": ("range", lambda value: [value.start, value.stop, value.step]),
    "builtins.complex": ("complex", lambda value: [value.real, value.imag]),
    "collections.deque": ("collections.deque", iter),
    "fractions.Fraction": ("fractions.Fraction", lambda value: [value.numerator, value.denominator]),
    "datetime.timedelta": ("datetime.timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
}
# type: (its name on the wire, how to write it as text)
_OF_TEXT: dict[str, tuple[str, _Plain]] = {
    "builtins.bytes": ("bytes", bytes.hex),
    "builtins.bytearray": ("bytearray", bytearray.hex),
    "decimal.Decimal": ("decimal.Decimal", str),
    "datetime.datetime": ("datetime.datetime", lambda value: value.isoformat()),
    "datetime.date": ("datetime.date", lambda value: value.isoformat()),
    "datetime.time": ("datetime.time", lambda value: value.isoformat()),
}


def encode(value: object, reference: Reference = refuse_reference) -> Wire:
    """`value` as JSON; a value that has no plain form is passed to `reference`."""
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
    """Subclasses of the atoms, built-in types themselves, numpy's numbers and arrays; the rest is a reference."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, list):
        return [encode(item, reference) for item in list.__iter__(value)]
    if isinstance(value, type) and (name := value.__name__) in vars(builtins) and vars(builtins)[name] is value:
        return {"type": "builtin", "value": name}
    if (
        getattr(type(value), "__module__", "") == "numpy"
        and getattr(getattr(value, "dtype", None), "kind", "-") in "biufcUO"
    ):
        return {
            "type": "numpy",
            "value": [value.dtype.str, hasattr(value, "__setitem__"), encode(value.tolist(), reference)],
        }
    return reference(value)


def _mapping(items: list) -> dict:
    return dict(zip(items[::2], items[1::2], strict=True))


def _builtin_type(name: str) -> type:
    found = vars(builtins).get(name)
    if not isinstance(found, type):
        raise ValueError(f"{name!r} is no built-in type")
    return found


def _library(name: str, maker: str | None = None) -> Callable[[], Any]:
    """The type `module.name`, or its class method `maker`; imported when it is first met."""
    module, _, attribute = name.rpartition(".")

    def find() -> Any:
        found = getattr(importlib.import_module(module), attribute)
        return getattr(found, maker) if maker else found

    return find


def _numpy(items: list) -> Any:
    """A numpy scalar or array, as itself: `==` and `is` on it must judge as they would beside the candidate."""
    kind, is_array, content = items
    if not isinstance(kind, str) or kind[1:2] not in set("biufcUO"):
        raise ValueError(f"no such numpy type: {kind!r}")
    numpy = importlib.import_module("numpy")
    if kind[1] == "U":
        return numpy.array(content)  # its own width: a candidate may claim any
    return numpy.array(content, dtype=kind) if is_array else numpy.dtype(kind).type(content)


_FROM_VALUES: dict[str, _Plain] = {
    "numpy": _numpy,
    "tuple": tuple,
    "dict": _mapping,
    "set": set,
    "frozenset": frozenset,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "range": lambda items: range(*items),
    "complex": lambda items: complex(*items),
    "collections.deque": lambda items: _library("collections.deque")()(items),
    "fractions.Fraction": lambda items: _library("fractions.Fraction")()(*items),
    "datetime.timedelta": lambda items: _library("datetime.timedelta")()(*items),
}
_FROM_TEXT: dict[str, _Plain] = {
    "integer": lambda digits: int(digits, 16),
    "builtin": _builtin_type,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "decimal.Decimal": lambda text: _library("decimal.Decimal")()(text),
    "datetime.datetime": lambda text: _library("datetime.datetime", "fromisoformat")()(text),
    "datetime.date": lambda text: _library("datetime.date", "fromisoformat")()(text),
    "datetime.time": lambda text: _library("datetime.time", "fromisoformat")()(text),
}


def decode(wire: Wire, reference: Reference | None = None) -> Any:
    """The value again; ValueError if it is no wire value. `reference` answers for objects that stayed on the other side."""
    if isinstance(wire, list):
        return [decode(item, reference) for item in wire]
    if not isinstance(wire, dict):
        return wire
    tag, inner = wire.get("type"), wire.get("value")
    if tag == "reference" and reference is not None:
        return reference(inner)
    if tag in _FROM_TEXT and isinstance(inner, str):
        return _FROM_TEXT[tag](inner)
    if tag in _FROM_VALUES and isinstance(inner, list):
        return _FROM_VALUES[tag]([decode(item, reference) for item in inner])
    raise ValueError(f"no such value on the wire: {str(wire)[:80]}")
