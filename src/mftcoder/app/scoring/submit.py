"""`mft submit`: check a folder of generations and pack it into the zip that the leaderboard accepts, or list every problem.

If `mft evaluate` has written metrics, the scores are printed beside the published baseline. Generates and runs nothing.
"""

from pathlib import Path

from rich.console import Console

from mftcoder.benchmarks.catalogue import GROUPS
from mftcoder.benchmarks.submission import BASELINE, GROUP, Review, pack, review_folder, review_zip
from mftcoder.errors import BenchmarkError, MftError
from mftcoder.jsonl import read_json
from mftcoder.reporting.terminal import print_table


def submit(folder: Path, out: Path | None, metrics: Path | None) -> Path:
    """Check and pack. If the submission would be refused, write nothing and raise an MftError with every problem."""
    if not folder.is_dir():
        raise BenchmarkError(f"{folder}: no such folder")
    review = review_folder(folder)
    _report(review)
    target = (out or folder.resolve().parent) / f"generations_{review.model}.zip"
    pack(review, target)
    _print_scores(review.model, metrics or folder.resolve().parent / f"metrics_{review.model}", folder)
    Console(stderr=True).print(f"wrote {target}", highlight=False, soft_wrap=True)
    return target


def check(path: Path) -> None:
    if not path.is_file():
        raise BenchmarkError(f"{path}: no such file")
    _report(review_zip(path))
    Console(stderr=True).print(f"{path}: would be accepted", highlight=False, soft_wrap=True)


def _report(review: Review) -> None:
    console = Console(stderr=True)
    for warning in review.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
    if review.problems:
        raise MftError.collect(review.problems, limit=50)


def _print_scores(model: str, *folders: Path) -> None:
    """Print the thirteen scores and their mean, or how to get them."""
    scores = {task: score for task in GROUPS[GROUP] if (score := _score(task, model, folders)) is not None}
    if not scores:
        Console(stderr=True).print(
            "not evaluated yet: `mft evaluate` on the thirteen files gives the scores", highlight=False
        )
        return
    rows = [
        (task, f"{scores[task]:.4f}" if task in scores else "not evaluated", f"{BASELINE[task]:.4f}")
        for task in GROUPS[GROUP]
    ]
    complete = len(scores) == len(BASELINE)
    mean = f"{sum(scores.values()) / len(scores):.4f}" if complete else f"{len(scores)} of {len(BASELINE)} evaluated"
    rows.append(("mean", mean, f"{sum(BASELINE.values()) / len(BASELINE):.4f}"))
    console = Console()
    console.print(f"pass@1 of {model}", highlight=False, markup=False, soft_wrap=True)
    print_table(console, ("task", "score", "Qwen-1.8B (published)"), rows)


def _score(task: str, model: str, folders: tuple[Path, ...]) -> float | None:
    path = next((path for folder in folders if (path := folder / f"metrics_{task}_{model}.json").is_file()), None)
    return None if path is None else float(read_json(path)["scores"]["pass@1"]["value"])
