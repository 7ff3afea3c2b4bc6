"""Tools of this machine: found, or named with what to install; their output and errors; what is built once."""

import sys
from pathlib import Path

import pytest

import mftcoder
from mftcoder.cache import cache_root
from mftcoder.errors import ExecutionError
from mftcoder.execution.isolation.confinement import readable_paths
from mftcoder.execution.toolchains import cache_folder, cached, find, output_of


@pytest.fixture(autouse=True)
def nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFTCODER_CACHE", str(tmp_path / "cache"))


def test_tools_are_found_by_their_absolute_paths() -> None:
    assert Path(find(("sh",), "install it", "Shell")["sh"]).is_absolute()


def test_missing_tools_are_named_with_what_to_install() -> None:
    with pytest.raises(
        ExecutionError, match=r"^Zig: zig-none, zag-none not found on this machine\. apt-get install zig$"
    ):
        find(("sh", "zig-none", "zag-none"), "apt-get install zig", "Zig")


def test_a_trusted_command_gets_the_environment_and_its_output_is_returned() -> None:
    assert output_of("sh", "-c", "echo $WORD", environment={"WORD": "said"}) == "said\n"


def test_a_trusted_command_that_fails_is_an_error_with_its_last_line() -> None:
    script = "import sys; print('first', file=sys.stderr); sys.exit('the last line')"
    with pytest.raises(ExecutionError, match=r"exit code 1: the last line$"):
        output_of(sys.executable, "-c", script)
    with pytest.raises(ExecutionError, match="no-such-tool"):
        output_of("no-such-tool")


def test_equal_contents_are_built_once() -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "made").write_text("x")

    first, again, other = (cached("std", contents, build) for contents in ("flags 1", "flags 1", "flags 2"))
    assert first == again != other
    assert list(map(str, built)) == [first, other] and (Path(first) / "made").is_file()


def test_a_cache_behind_a_link_is_built_once_under_its_own_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Builds contain their path, and a program sees only the folder of its toolchain."""
    (tmp_path / "real").mkdir()
    folders = set()
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(tmp_path / "real")
        monkeypatch.setenv("MFTCODER_CACHE", str(tmp_path / name))
        folders.add(cached("std", "flags", lambda folder: (folder / "path").write_text(str(folder))))
    (folder,) = folders
    assert (Path(folder) / "path").read_text() == folder == str(Path(folder).resolve())


def test_a_build_that_failed_starts_again_from_an_empty_folder() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ExecutionError("broke off")

    with pytest.raises(ExecutionError):
        cached("std", "flags", fail)
    folder = cached("std", "flags", lambda folder: (folder / "whole").write_text("x"))
    assert {path.name for path in Path(folder).iterdir()} == {"whole", ".done"}


def test_programs_may_read_the_system_and_the_interpreter_but_not_the_user() -> None:
    paths = [Path(path) for path in readable_paths()]
    assert all(path.exists() for path in paths)
    assert reaches(paths, Path(sys.base_prefix).resolve()) and reaches(paths, Path("/usr/bin"))
    assert not reaches(paths, Path.home() / "file") and not reaches(paths, Path("/etc/passwd"))


def reaches(paths: list[Path], wanted: Path) -> bool:
    return any(wanted.is_relative_to(path) for path in paths)


def test_this_package_cannot_be_read_where_a_readable_folder_holds_it() -> None:
    """It contains the tests of the project's own benchmark."""
    package = Path(mftcoder.__file__).resolve().parent
    paths = [Path(path) for path in readable_paths(str(package.parents[1]))]
    assert not reaches(paths, package / "benchmarks") and not reaches(paths, package)
    beside = [path for path in package.parents[1].iterdir() if path != package.parent]
    assert all(reaches(paths, path) for path in beside)


def test_no_readable_path_lies_inside_another(tmp_path: Path) -> None:
    (tmp_path / "tools/bin").mkdir(parents=True)
    paths = readable_paths(str(tmp_path / "tools/bin"), str(tmp_path / "tools"), str(tmp_path / "not there"))
    assert str(tmp_path / "tools") in paths and str(tmp_path / "tools/bin") not in paths
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("configured", [None, "~/elsewhere"])
def test_toolchains_lie_in_the_cache_folder_of_the_whole_package(
    configured: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MFTCODER_CACHE", raising=False)
    if configured:
        monkeypatch.setenv("MFTCODER_CACHE", configured)
    assert cache_folder() == cache_root() / "toolchains"
