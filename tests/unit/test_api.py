"""`import mftcoder` is light, and every public name is there."""

import subprocess
import sys

import pytest

import mftcoder

HEAVY = ("torch", "transformers", "numpy", "pydantic", "rich", "click")


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, mftcoder; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", mftcoder.__all__)
def test_every_public_name_can_be_had_and_has_a_docstring(name: str) -> None:
    value = getattr(mftcoder, name)
    assert name in dir(mftcoder)
    assert name == "__version__" or value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        mftcoder.trian  # noqa: B018


def test_the_names_for_type_checkers_are_those_that_are_imported_on_first_use() -> None:
    assert set(mftcoder._HOME_OF) | {"__version__"} == set(mftcoder.__all__)
