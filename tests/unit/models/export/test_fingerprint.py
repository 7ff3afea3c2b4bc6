"""Two models have one fingerprint if they compute the same, wherever they lie."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from mftcoder.models.export.fingerprint import fingerprint
from mftcoder.models.export.source import find_source


def test_the_fingerprint_is_of_weights_and_config_and_of_nothing_else(tiny_llama_dir: Path, tmp_path: Path) -> None:
    def found(folder: Path) -> str:
        return fingerprint(find_source(str(folder)))

    first, other = (Path(shutil.copytree(tiny_llama_dir, tmp_path / name)) for name in "ab")
    (other / "README.md").write_text("# another text")
    assert found(first) == found(other) == found(tiny_llama_dir)
    weights = load_file(first / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, first / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert len({found(folder) for folder in (first, other, tiny_llama_dir)}) == 3
