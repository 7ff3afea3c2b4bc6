"""What a rule finds in a record that must not be published: passwords and keys, addresses and numbers of people."""

import ipaddress
import re
from collections.abc import Collection
from functools import cache
from typing import Any

from mftcoder.curation.example import Example
from mftcoder.registry import words

_LINE = 4096
_LONG_LINE = re.compile(rf"[^\n]{{{_LINE}}}")
"""Longer lines are looked at in pieces: some of the detectors take time that grows with the square of a line."""
_MAYBE_SECRET = re.compile(r"[A-Za-z0-9_/+-]{16}|PRIVATE KEY|://[^\s/]+@")
_LEFT_OUT = words(
    "ArtifactoryDetector IPPublicDetector CloudantDetector IbmCloudIamDetector IbmCosHmacDetector SoftlayerDetector"
)
"""They find ordinary words, addresses (a rule of their own), or decide by the name of a variable and are slow."""

_NEEDED = {"NpmDetector": ":_authToken="}
"""What a slow detector cannot do without."""


def secrets(example: Example) -> int:
    """Found by the detectors of detect-secrets that know the form of a key, not by those that guess by entropy or by a variable's name."""
    text = _text(example)
    if not _MAYBE_SECRET.search(text):
        return 0
    detectors = [found for found in _detectors() if _NEEDED.get(type(found).__name__, "") in text]
    return len({found for detector in detectors for found in detector.analyze_string(text)})


@cache
def _detectors() -> tuple[Any, ...]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
    from detect_secrets.plugins.base import RegexBasedDetector

    found: Collection[Any] = get_mapping_from_secret_type_to_class().values()
    return tuple(kind() for kind in found if issubclass(kind, RegexBasedDetector) and kind.__name__ not in _LEFT_OUT)


def _text(example: Example) -> str:
    return _LONG_LINE.sub(r"\g<0>\n", "\n".join(message.content for message in example.conversation.messages))


_EMAIL = re.compile(
    r"(?<![\w.+%/:-])(?P<name>[A-Za-z0-9][\w.+-]{0,63})@(?P<domain>(?:[A-Za-z0-9-]{1,63}\.){1,8}(?:com|org|net|edu|gov|info|io|co|[a-z]{2}))(?![\w@-])"
)
_PLACEHOLDER_NAME = re.compile(r"(?:your|my|user|name|first|last|test|foo|bar|abc|john|jane|joe|bob|alice|someone|somebody|you|me|admin|info|support|contact|sales|hello|mail|e-?mail|no-?reply|git|sender|recipient|receiver|from|to|example|sample|xyz|hr|help)", re.IGNORECASE)  # fmt: skip
_PLACEHOLDER_DOMAIN = re.compile(
    r"(?:.*\.)?(?:example|test|domain|my\w*|your\w*|e?mail|company|site|website|abc|xyz|foo|bar|server|host|some\w*)\.[a-z]+",
    re.IGNORECASE,
)
_PHONE = re.compile(
    r"(?<![\w.,+/=-])(?:\+\d{1,3}(?:[ .-]?\(?\d{2,8}\)?){1,5}|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4})(?![\w-])"
)
_FICTIONAL = re.compile(r"555|123|456|789|0000|(\d)\1{3}")
_ADDRESS = re.compile(r"(?<![\w.=<>~^-])(?:\d{1,3}\.){3}\d{1,3}(?![\w.-])")
_LEAST_OCTET = 11


def personal_data(example: Example) -> int:
    """Examples that stand for nobody do not count: `user@example.com`, 555 numbers, private and documentation addresses."""
    text = _text(example)
    emails = {found[0] for found in _EMAIL.finditer(text) if _is_real_email(found)} if "@" in text else set()
    phones = {found[0] for found in _PHONE.finditer(text) if _is_real_phone(re.sub(r"\D", "", found[0]))}
    addresses = {found[0] for found in _ADDRESS.finditer(text) if _is_real_address(found[0])}
    return len(emails) + len(phones) + len(addresses)


def _is_real_email(found: re.Match[str]) -> bool:
    return not _PLACEHOLDER_NAME.match(found["name"]) and not _PLACEHOLDER_DOMAIN.fullmatch(found["domain"])


def _is_real_phone(digits: str) -> bool:
    return 10 <= len(digits) <= 15 and not _FICTIONAL.search(digits)


def _is_real_address(text: str) -> bool:
    """A public address that is no counting (123.45.67.89), and no version: its first number is 11 or more."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return address.is_global and int(text.split(".")[0]) >= _LEAST_OCTET and not text.startswith(("12.34.", "123.45."))
