"""`mft prepare`: tokenize all records into the store that training reads, and count them.

`mft train` makes the same store if there is none. Preparing first shows the counts and the errors earlier.
Needs no torch.
"""

from dataclasses import asdict, dataclass
from typing import Any

from mftcoder.config.load import check_config
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.packing import plan_rows
from mftcoder.data.prepared.store import Store, prepare_with_progress
from mftcoder.log import OnProgress, no_progress


@dataclass(frozen=True)
class PreparedData:
    """The samples of every task, tokenized, on disk."""

    config: RunConfig
    store: Store

    def rows(self) -> list[dict[str, Any]]:
        """One row per task for a DataFrame: its counts, its packed rows, and how full they are.

        `row_fill` is a fraction. It is None if the length of a row depends on its batch (padding: dynamic).
        """
        return [
            {"task": name, **asdict(counts), **self._packed(task)}
            for task, (name, counts) in enumerate(zip(self.store.tasks, self.store.statistics, strict=True))
        ]

    def _packed(self, task: int) -> dict[str, float | None]:
        data, lengths = self.config.data, self.store.train(task).lengths
        plan = plan_rows(lengths, data.packing, data.max_length)
        by_batch = data.packing == "none" and data.padding == "dynamic"
        return {"rows": len(plan), "row_fill": None if by_batch else plan.fill(lengths, data.max_length)}


def prepare(config: RunConfig, *, on_progress: OnProgress = no_progress) -> PreparedData:
    """Make or find the store. DataError lists all bad records."""
    check_config(config)
    return PreparedData(config, prepare_with_progress(config, on_progress))
