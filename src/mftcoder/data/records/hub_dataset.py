"""A dataset of the Hub -> one .jsonl.gz file in the cache, streamed, one for each revision.

Everything after that treats it as a local file. Needs the extra `hub` (the datasets library).
"""

from pathlib import Path

from mftcoder.errors import DataError
from mftcoder.jsonl import write_jsonl


def fetch_dataset(identifier: str, cache: Path) -> Path:
    """The `train` split of a Hub dataset as a file; DataError if it is neither there nor a local path."""
    advice = "Give a folder, a .jsonl file, or the id of a dataset on the Hub."
    try:
        import datasets  # slow to import, and an extra
        from huggingface_hub import HfApi
    except ImportError as error:
        raise DataError(f"{identifier}: no such file or folder; for the Hub install mftcoder[hub]. {advice}") from error
    try:
        revision = HfApi().dataset_info(identifier).sha or "main"
        target = cache / "hub" / identifier.replace("/", "--") / revision / "train.jsonl.gz"
        if not target.exists():
            write_jsonl(target, datasets.load_dataset(identifier, split="train", streaming=True, revision=revision))
    except Exception as error:  # the Hub's libraries raise many kinds, down to those of their HTTP client
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{identifier}: no such file or folder, and not to be had from the Hub: {reason}. {advice}"
        ) from error
    return target
