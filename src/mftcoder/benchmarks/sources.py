"""Where a benchmark's records come from: a local folder, or the Hugging Face Hub. What they mean is left to the families."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mftcoder.errors import BenchmarkError, DataError
from mftcoder.hub import hub_errors
from mftcoder.jsonl import open_for_reading, read_jsonl

Record = Mapping[str, Any]


@dataclass(frozen=True)
class HubData:
    """A dataset of the Hub: a split of a configuration, or if `file` is given, one JSON Lines file of its repository."""

    repository: str
    configuration: str | None = None
    split: str = "test"
    file: str | None = None


@dataclass(frozen=True)
class Source:
    """The two places that records can come from. `path` is relative to the data folder, without `.gz`."""

    path: str
    hub: HubData | None = None

    def local_file(self, data_dir: Path) -> Path | None:
        """The file under `data_dir`, which may be the folder of all data, its parent, or the benchmark's own folder."""
        relative = Path(self.path)
        places = (data_dir / relative, data_dir / "data" / relative, *_tails(data_dir, relative))
        found = (path for place in places for path in (place.with_name(f"{place.name}.gz"), place) if path.is_file())
        return next(found, None)

    def records(self, name: str, data_dir: Path | None) -> tuple[list[Record], str]:
        """The records, and the file's name with its checksum. BenchmarkError with a remedy if there are none."""
        if data_dir is None:
            return self._hub_records(name)
        found = self.local_file(data_dir)
        if found is None:
            raise BenchmarkError(f"{name}: no {self.path}[.gz] under {data_dir}")
        return local_records(found)

    def _hub_records(self, name: str) -> tuple[list[Record], str]:
        if self.hub is None:
            raise BenchmarkError(f"{name}: not on the Hub; give the folder that holds {self.path}[.gz] with --data-dir")
        advice = f"Check the network, or give the folder that holds {self.path}[.gz] with --data-dir."
        with hub_errors(f"{name}: no --data-dir for {self.hub.repository}", advice=advice, kind=BenchmarkError):
            return _download_file(self.hub) if self.hub.file else _download_split(self.hub)


def local_records(path: Path) -> tuple[list[Record], str]:
    """The records of a JSON Lines file, and `name (sha256 ...)`."""
    if not path.is_file():
        raise BenchmarkError(f"{path}: no such file")
    records = [record for _, record in read_jsonl(path)]
    with open_for_reading(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if not records:
        raise DataError(f"{path}: no problems in this file")
    return records, f"{path.name} (sha256 {digest[:16]})"


def _tails(data_dir: Path, relative: Path) -> Sequence[Path]:
    """The file if `data_dir` is one of the folders on its relative path: `a/b/c` -> `b/c` and `c` under `data_dir`."""
    parts = relative.parts
    return [data_dir.joinpath(*parts[start:]) for start in range(1, len(parts))]


def _download_file(hub: HubData) -> tuple[list[Record], str]:
    import huggingface_hub

    path = huggingface_hub.hf_hub_download(hub.repository, hub.file or "", repo_type="dataset")
    records, origin = local_records(Path(path))
    return records, f"{hub.repository}: {origin}"


def _download_split(hub: HubData) -> tuple[list[Record], str]:
    import datasets

    data = datasets.load_dataset(hub.repository, hub.configuration, split=hub.split)
    fingerprint = getattr(data, "_fingerprint", "unknown")
    origin = f"{hub.repository} {hub.configuration or ''} {hub.split} (fingerprint {fingerprint})"
    return [dict(record) for record in data], origin
