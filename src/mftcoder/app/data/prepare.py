"""`mft prepare`: tokenize all records into the store that training reads, and count them.

`mft train` makes the same store if there is none. Preparing first shows the counts and the errors earlier.
Needs no torch.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mftcoder.config.kinds import PretrainKind
from mftcoder.config.load import check_config
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.packing import plan_rows
from mftcoder.data.prepared.store import Store
from mftcoder.data.prepared.store import prepare as prepare_store
from mftcoder.data.records.megatron import write_token_file
from mftcoder.data.tokenizers.tokenizer import load_tokenizer
from mftcoder.errors import ConfigError, MftError
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
    return PreparedData(config, prepare_store(config, on_progress=on_progress))


@dataclass(frozen=True)
class WrittenTokens:
    """One pair of files: `index` is the .idx file, and the .bin file is beside it."""

    task: str
    is_validation: bool
    index: Path
    documents: int
    tokens: int


def check_megatron(config: RunConfig) -> None:
    """ConfigError names every task that token files cannot hold: they have no word on which tokens are trained."""
    problems = [
        f"tasks.{task.name}: has kind {task.kind.name}. --format megatron writes tasks of kind pretrain only, because a token file has "
        "no mask of the trained tokens"
        for task in config.tasks
        if not isinstance(task.kind, PretrainKind)
    ]
    if problems:
        raise ConfigError(*problems)


def write_megatron(prepared: PreparedData, folder: Path) -> list[WrittenTokens]:
    """Write the samples of every task as TASK_input_ids.bin and .idx, and those for validation as TASK_validation_input_ids.

    Documents that run on are written as rows of data.max_length tokens, the last one shorter; isolated ones as they are.
    """
    config, store = prepared.config, prepared.store
    check_megatron(config)
    model = config.model
    vocabulary = load_tokenizer(model.tokenizer_name_or_path or model.model_name_or_path).backend.get_vocab(
        with_added_tokens=True
    )
    written = []
    for number, task in enumerate(config.tasks):
        for samples, middle in ((store.train(number), ""), (store.validation(number), "_validation")):
            if not len(samples):
                continue
            prefix = folder / f"{task.name}{middle}_input_ids"
            documents = samples.documents(run_on=getattr(task.kind, "documents", "") == "packed")
            try:
                counts = write_token_file(prefix, documents, vocabulary)
            except OSError as error:
                raise MftError(f"{folder}: cannot be written: {error.strerror}. Choose another --out.") from error
            written.append(WrittenTokens(task.name, bool(middle), prefix.with_name(f"{prefix.name}.idx"), *counts))
    return written
