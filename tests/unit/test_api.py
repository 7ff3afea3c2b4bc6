"""`import mftcoder` is light, and every public name is there."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mftcoder
from mftcoder import MftError, RunConfig

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


@pytest.fixture
def config() -> RunConfig:
    return RunConfig.model_validate({"model": "nowhere", "tasks": {"a": "a"}, "output_dir": "run"})


@pytest.mark.parametrize("verb", ["prepare", "train", "compare"])
@pytest.mark.parametrize("wrong", ["my.yaml", Path("my.yaml"), {"model": "m"}, None])
def test_a_verb_says_what_it_takes_instead_of_a_config(verb: str, wrong: Any) -> None:
    with pytest.raises(MftError, match=r"config: is a \w+, not a RunConfig; make one with load_config"):
        getattr(mftcoder, verb)(wrong)


@pytest.mark.parametrize("overrides", ["train.max_steps=4", {"train.max_steps": 4}, [4], None])
def test_overrides_are_a_list_of_texts(config: RunConfig, overrides: Any) -> None:
    for call in (
        lambda: mftcoder.load_config("my.yaml", overrides),
        lambda: mftcoder.with_overrides(config, overrides),
    ):
        with pytest.raises(MftError, match="overrides: give a list of texts"):
            call()


def test_the_path_of_a_config_is_a_path() -> None:
    with pytest.raises(MftError, match="path: is a dict; give the path"):
        mftcoder.load_config({"model": "m"})  # type: ignore[arg-type]


def test_callbacks_are_functions(config: RunConfig) -> None:
    with pytest.raises(MftError, match="on_step: must be a function, not 3\non_checkpoint: must be a function"):
        mftcoder.train(config, on_step=3, on_checkpoint="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"balancers": "coba"}, {"balancers": []}, {"seeds": 0}, {"seeds": []}, {"jobs": 0}])
def test_a_comparison_takes_lists_that_are_not_empty(config: RunConfig, wrong: dict[str, Any]) -> None:
    with pytest.raises(MftError, match=f"{next(iter(wrong))}: "):
        mftcoder.compare(config, **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0}, {"limit": -1}, {"limit": "3"}, {"n_samples": 0}, {"temperature": -1}, {"temperature": float("nan")},
        {"top_p": 0}, {"max_new_tokens": 0}, {"seed": None}, {"nosuch": 1}, {"mode": "talk"},
    ],
)  # fmt: skip
def test_generate_refuses_what_the_command_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(MftError, match=f"^{next(iter(wrong))}: "):
        mftcoder.generate("nowhere", "mini", **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"k": 0},
        {"k": "1"},
        {"k": []},
        {"workers": 0},
        {"timeout": 0},
        {"memory_mb": 1},
        {"nosuch": 1},
        {"imports": "x"},
    ],
)
def test_evaluate_refuses_what_the_command_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(MftError, match=f"^{next(iter(wrong))}: "):
        mftcoder.evaluate("generations_mini_x.json", **wrong)


@pytest.mark.parametrize("files", [[], None, 3, [3]])
def test_evaluate_takes_one_or_more_paths(files: Any) -> None:
    with pytest.raises(MftError, match="files: give one or more paths"):
        mftcoder.evaluate(files)


@pytest.mark.parametrize("tasks", [3, None, [3]])
def test_generate_takes_names_of_benchmarks(tasks: Any) -> None:
    with pytest.raises(MftError, match="tasks: give the name of a benchmark or a list of names"):
        mftcoder.generate("nowhere", tasks)
