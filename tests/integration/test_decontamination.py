"""HumanEval itself in disguise is dropped to the last problem, and the standard library is kept: the claims of docs/curation.md."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mftcoder.app.data.curate import _problems_of
from mftcoder.curation.decontamination.exams import DecontaminateConfig
from mftcoder.curation.decontamination.rules import Decontamination

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("MFTCODER_SHARED", ROOT.parent / "shared")) / "data"
COMPLETE = ("verbatim", "names changed", "text reworded", "names changed, text reworded")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "performance"))
    spec = importlib.util.spec_from_file_location("decontaminate_script", ROOT / "performance" / "decontaminate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.delitem(sys.modules, "variants")
    return module


@pytest.mark.skipif(not (DATA / "humaneval").is_dir(), reason="needs the shared data")
def test_humaneval_is_dropped_in_every_disguise_and_the_standard_library_is_kept(script: ModuleType) -> None:
    config = DecontaminateConfig(benchmarks=("humaneval",), data_dir=str(DATA))
    problems = list(_problems_of(config))
    step = Decontamination(config, problems)
    checks = {"default rules": lambda example: step.check(example) is not None}
    missed = [(title, missed) for title, _, _, missed in script.disguised(problems, checks) if title in COMPLETE]
    assert missed == [(title, []) for title in COMPLETE]
    assert len(problems) == 164
    kept = [example for example in script.library_functions(1000) if step.check(example) is None]
    assert len(kept) == 1000
