"""Other inputs than those of the tests: their calls with other plain values. On these a change must give what the old code gives.

A body that only knows the inputs of the tests is found so, whoever wrote the tests.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mftcoder.assistant.functions import FunctionText

MOST_INPUTS = 32
_ROUNDS = 12  # of each call, before inputs run out
_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\\n%]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?<![\w.\[])(?P<number>\d+(?:\.\d+)?)(?P<suffix>[uUlLfFdD]|_?[iuf]\d+|n)?(?![\w.\]])"""
)
_GROUP = re.compile(r"(?P<open>[\[{]|(?:of|asList)\()(?P<items>[^\[\]{}()]*)(?P<close>[\]})])")
_UNSIGNED = re.compile(r"\bu(?:int|size|8|16|32|64|128)\w*|\bsize_t\b|\bunsigned\b|\bchar\b|\bbyte\b|\brune\b")


@dataclass(frozen=True)
class Reference:
    """Calls, and what the old code answers: `a` and a hash for a value, `e` and the kind of an error."""

    calls: tuple[str, ...]
    answers: tuple[str, ...]

    def only_values(self) -> "Reference":
        """Without the calls that end in an error."""
        kept = [pair for pair in zip(self.calls, self.answers, strict=True) if pair[1].startswith("a")]
        return Reference(tuple(call for call, _ in kept), tuple(answer for _, answer in kept))


def other_calls(function: FunctionText, calls: Sequence[str], *, is_careful: bool = False) -> list[str]:
    """Calls with other values of the same kinds, the same ones each time. `is_careful`: numbers only become smaller, no list changes."""
    chosen = random.Random(f"{function.text}{calls}")
    head = function.text[: function.text.find("{")]
    has_signs = not is_careful and _UNSIGNED.search(head) is None
    found = dict.fromkeys(
        one for call in calls for one in _borders(call, has_signs and not is_careful) if one not in calls
    )
    for _ in range(_ROUNDS):
        for call in calls:
            name, _, given = call.partition("(")
            made = f"{name}({_varied(given, chosen, function.file.language, has_signs, is_careful)}"
            if made not in calls:
                found.setdefault(made)
    return list(found)[:MOST_INPUTS]


def _borders(call: str, has_signs: bool) -> Iterator[str]:
    """The call with each number 0 and of the other sign, and with each list empty, one at a time."""
    name, _, given = call.partition("(")
    for token in _TOKEN.finditer(given):
        sign = given[max(0, token.start() - 1) : token.start()]
        values = ["0", f"-{token[0]}"] if has_signs and sign != "-" else ["0"]
        for value in values if token["number"] and token["number"].isdigit() else ():
            yield f"{name}({given[: token.start()]}{value}{given[token.end() :]}"
    for group in _GROUP.finditer(given) if has_signs else ():
        yield f"{name}({given[: group.start()]}{group['open']}{group['close']}{given[group.end() :]}"


def _varied(given: str, chosen: random.Random, language: str, has_signs: bool, is_careful: bool) -> str:
    regrouped = given if is_careful else _GROUP.sub(lambda group: _regrouped(group, chosen), given)
    return _TOKEN.sub(lambda token: _value(token, chosen, language, has_signs, is_careful), regrouped)


def _regrouped(group: re.Match[str], chosen: random.Random) -> str:
    """A list with another order or length; maps and lists with anything but plain values stay."""
    items = [item.strip() for item in group["items"].split(",") if item.strip()]
    if len(items) < 2 or not all(_TOKEN.fullmatch(item.removeprefix("-")) for item in items):
        return group[0]
    made = chosen.choice((items, items[::-1], items[1:], items + items[:1], items[:1]))
    return f"{group['open']}{', '.join(made)}{group['close']}"


def _value(token: re.Match[str], chosen: random.Random, language: str, has_signs: bool, is_careful: bool) -> str:
    if token["text"]:
        return _text(token["text"], chosen, is_character=language != "javascript" and token["text"][0] == "'")
    text, suffix = token["number"], token["suffix"] or ""
    if "." in text:
        number = float(text)
        return f"{chosen.choice((number, number + 0.5, number * 2, 1.0)):.2f}{suffix}"
    number = int(text)
    near = [number, max(0, number - 1), number // 2]
    if not is_careful:
        near += [number + 1, *([0, 1, 2 * number + 1, number + 7] if number < 50 else [])]
    is_signed = token.string[max(0, token.start() - 1) : token.start()] == "-"
    sign = "-" if has_signs and not is_signed and not suffix.startswith(("u", "U")) and chosen.random() < 0.2 else ""
    made = chosen.choice(near)
    return f"{sign if made else ''}{made}{suffix}"


def _text(text: str, chosen: random.Random, *, is_character: bool) -> str:
    quote, inside = text[0], text[1:-1]
    if is_character:
        return f"{quote}{chosen.choice((inside, 'a', 'Z', '7'))}{quote}" if inside.isalnum() else text
    if "\\" in inside or not inside.isascii():
        return text
    forms = (inside, inside[:-1], inside + inside[:1], inside[::-1], inside.swapcase(), inside + "q", "")
    return f"{quote}{chosen.choice(forms)}{quote}"


def steady(answers: Callable[[list[str]], list[str]], calls: Sequence[str]) -> Reference:
    """The calls that have the same answer each time. One at which the program ends is left out."""
    left = list(calls)
    for _ in range(4):
        first = answers(left)
        if len(first) == len(left):
            break
        del left[len(first)]
    else:
        return Reference((), ())
    kept = [(call, one) for call, one, other in zip(left, first, answers(left), strict=False) if one == other]
    return Reference(tuple(call for call, _ in kept), tuple(one for _, one in kept))


def differing(reference: Reference, answers: Sequence[str]) -> Iterator[str]:
    """The calls with another answer than that of the old code."""
    for number, (call, answer) in enumerate(zip(reference.calls, reference.answers, strict=True)):
        if number >= len(answers) or answers[number] != answer:
            yield call
