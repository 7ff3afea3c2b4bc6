"""The pages of docs/ that are made from the code say what the code says."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from mftcoder.config.compat.aliases import all_fields
from mftcoder.config.compat.mftcoder_json_keys import PublishedConfig

DOCS = Path(__file__).parents[2] / "docs"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date() -> None:
    stale = [name for name, text in generator().pages().items() if (DOCS / name).read_text(encoding="utf-8") != text]
    assert stale == [], "run `make docs`"


def test_every_field_and_every_published_key_has_a_row_with_a_sentence() -> None:
    rows = [line for line in generator().configuration().splitlines() if line.startswith("| `")]
    described = {line.split("`")[1] for line in rows if line.rstrip(" |").endswith((".", ")", "]"))}
    wanted = {dotted.rsplit(".", 1)[-1] for dotted in all_fields()} | set(PublishedConfig.model_fields)
    assert wanted - described == set()


def test_the_chinese_readme_has_the_same_commands_and_figures() -> None:
    root = DOCS.parent
    english, chinese = ((root / name).read_text(encoding="utf-8") for name in ("README.md", "README_cn.md"))
    for pattern in (r"^(?:mft|make|python) [^#\n]*?(?=\s*(?:#|$))", r"(?<![\w/.-])\d+(?:[.,]\d+)*%?", r"\]\(([^)]+)\)"):
        found = [
            sorted(re.findall(pattern, text.replace("README_cn.md", "README.md"), re.MULTILINE))
            for text in (english, chinese)
        ]
        assert found[0] == found[1], pattern
