"""The plan of docs/architecture.md, held: which package may import which, what stays torch-free, how large files and folders are."""

import ast
from functools import cache
from pathlib import Path

import pytest

from mftcoder import registry

TESTS = Path(__file__).parent
SOURCE = TESTS.parents[1] / "src" / "mftcoder"
OF_THE_WHOLE = {"test_api.py", "test_architecture.py", "test_docs.py", "balancing/test_every_balancer.py"}
FILES = sorted(SOURCE.rglob("*.py"))
LEAVES = {"errors", "registry", "jsonl", "log", "processes", "stages", "cache", "hub"}
PACKAGES = {
    "data",
    "curation",
    "models",
    "balancing",
    "kernels",
    "training",
    "generation",
    "execution",
    "benchmarks",
    "reporting",
    "serving",
    "assistant",
}
BETWEEN_PACKAGES = {
    "training": {"data", "balancing", "kernels"},
    "models": {"kernels", "data.tokenizers"},
    "generation": {"models", "data.tokenizers"},
    "benchmarks": {"generation.engine", "execution"},
    "curation": {"data", "execution"},
    "serving": {"generation", "data", "execution"},
    "assistant": {"curation", "execution"},
}
TORCH_FREE = [
    "cli", "errors", "registry", "jsonl", "log", "processes", "cache", "hub", "config", "balancing", "execution", "benchmarks", "curation", "assistant", "generation.engine",
    "data.records", "data.rendering", "data.prepared", "data.batches.packing", "data.batches.mixture",
    "app.data", "app.scoring.evaluate", "app.scoring.options", "app.scoring.submit", "app.results.verify", "app.results.report", "app.demo", "app.training.convert_config",
    "reporting",
]  # fmt: skip
HEAVY = {"torch", "transformers", "peft", "accelerate"}
MAX_LINES = 400
MAX_FILES = 11  # Python files of one folder, its __init__ not counted
GROWING = {"balancing/methods": "BALANCERS", "benchmarks/families": "BENCHMARKS"}  # a file for each line of a table


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") or "mftcoder"


MODULES = frozenset(map(module_name, FILES))


@cache
def imports(path: Path) -> set[str]:
    """Every module imported anywhere in the file, as a dotted name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@cache
def own_imports(path: Path) -> set[str]:
    """Modules of this package that the file imports, without the package's name."""
    names = {name.removeprefix("mftcoder.") for name in imports(path) if name.startswith("mftcoder.")}
    return names & MODULES


def package_of(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_follow_the_arrows(path: Path) -> None:
    module = module_name(path)
    package = package_of(module)
    if module == "__init__":
        return  # its names are imported on first use: tests/unit/test_api.py
    for target in own_imports(path):
        target_package = package_of(target)
        if target_package in LEAVES or target_package == package != "app":
            continue
        if package == "cli" or module == "__main__":
            assert target_package in {"app", "config", "cli", "reporting"}, f"{module} imports {target}"
        elif package == "app":
            assert target_package in PACKAGES | {"config"} or target in APP_SUPPORT, f"{module} imports {target}"
        elif package in PACKAGES:
            allowed = BETWEEN_PACKAGES.get(package, set())
            inside = any(target == arrow or target.startswith(f"{arrow}.") for arrow in allowed)
            assert target_package == "config" or inside, f"{module} imports {target}"
        else:
            assert (package == "config" and target_package == "config") or package in LEAVES, (
                f"{module} imports {target}"
            )


APP_SUPPORT = {
    "app.scoring.options",
    "app.serving.model_choice",
    "app.serving.vllm_model",
    "app.scoring.engine_choice",
    "app.training.plan_choice",
    "app.training.rounds",
}


def test_execution_needs_only_the_errors_and_did_you_mean() -> None:
    """So that it could be a distribution of its own."""
    needed = {target for path in (SOURCE / "execution").rglob("*.py") for target in own_imports(path)}
    assert {target for target in needed if package_of(target) != "execution"} == {"errors", "registry"}


def reachable(module: str, graph: dict[str, set[str]]) -> set[str]:
    seen, todo = set(), [module]
    while todo:
        here = todo.pop()
        if here not in seen:
            seen.add(here)
            todo += graph.get(here, set())
    return seen


def test_no_import_cycle() -> None:
    graph = {module_name(path): own_imports(path) - {module_name(path)} for path in FILES}
    cycles = [m for m in graph if any(m in reachable(target, graph) for target in graph[m])]
    assert not cycles


def test_no_cycle_between_the_folders_inside_a_package() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        here = folder_of(module_name(path))
        graph.setdefault(here, set()).update({folder_of(target) for target in own_imports(path)} - {here})
    cycles = [folder for folder in graph if any(folder in reachable(target, graph) for target in graph[folder])]
    assert not cycles


def folder_of(module: str) -> str:
    """`data.records` for `data.records.formats`; a file beside such folders stands for itself."""
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize(
    "folder", sorted({path.parent for path in FILES}), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_folder_can_be_taken_in_at_a_glance(folder: Path) -> None:
    files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MAX_FILES or str(folder.relative_to(SOURCE)) in GROWING, (
        f"{folder.name} holds {len(files)} files"
    )


@pytest.mark.parametrize(("folder", "table"), GROWING.items())
def test_each_file_of_a_folder_of_methods_has_its_line_in_the_table(folder: str, table: str) -> None:
    named = {target.partition(":")[0] for target in getattr(registry, table).table.values()}
    for path in (SOURCE / folder).glob("*.py"):
        assert path.name == "__init__.py" or f"mftcoder.{module_name(path)}" in named, (
            f"name {path.name} in {table} of registry.py"
        )


@pytest.mark.parametrize("prefix", TORCH_FREE)
def test_torch_free_part_reaches_nothing_heavy(prefix: str) -> None:
    """cli is held by the top-level imports of its run (tests/integration), its commands import their verbs when they run."""
    by_name = {module_name(path): path for path in FILES}
    graph = {name: own_imports(path) for name, path in by_name.items() if package_of(name) != "cli"}
    for module in by_name:
        if module == prefix or module.startswith(f"{prefix}."):
            for reached in reachable(module, graph) & by_name.keys():
                heavy = {name.split(".")[0] for name in imports(by_name[reached])} & HEAVY
                assert not heavy, f"{module} reaches {reached}, which imports {heavy}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_file_fits_on_a_few_screens_and_opens_by_saying_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES, f"{path.name} has {text.count(chr(10))} lines"
    assert ast.get_docstring(ast.parse(text)), f"{path.name} has no docstring"


def test_the_test_of_a_module_is_found_by_its_name() -> None:
    """`tests/unit/a/test_b.py` or `test_b_<aspect>.py` tests the module a/b.py; test_a.py may stand for a whole folder a."""
    strays = []
    for path in sorted(TESTS.rglob("test_*.py")):
        folder = path.relative_to(TESTS).parent
        assert (SOURCE / folder).is_dir(), (
            f"{folder}: src has no such folder. Move the tests to tests/unit/<folder of their module>"
        )
        subjects = {module.stem for module in (SOURCE / folder).iterdir()} | {folder.name}
        name = path.stem.removeprefix("test_")
        if folder.parts[:1] != ("curation",) and not any(
            name == subject or name.startswith(f"{subject}_") for subject in subjects
        ):
            strays.append(str(path.relative_to(TESTS)))
    assert set(strays) == OF_THE_WHOLE, "move each to tests/unit/<folder of its module>/test_<module>.py"
