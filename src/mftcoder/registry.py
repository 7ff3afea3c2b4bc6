"""Names to implementations: tables of "module:attribute", imported on first use. Other packages add theirs by entry point.

The tables hold strings only. So the config can check a name without importing what it names.
"""

import difflib
import functools
import importlib
import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mftcoder.errors import ConfigError


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'coba'?` for a near miss, else ` Known: a, b, c.` Starts with a space, to follow a sentence."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    close = [one for one in known if one.lower() == name.lower()] or close
    return f" Did you mean '{close[0]}'?" if close else f" Known: {', '.join(known)}."


def words(*texts: str) -> frozenset[str]:
    """The words of texts: how a long set of names is written."""
    return frozenset(" ".join(texts).split())


@functools.cache
def _entry_points(group: str) -> dict[str, str]:
    """Name -> target of what other packages registered. Reads the metadata of all installed packages."""
    return {point.name: point.value for point in importlib.metadata.entry_points(group=group)}


@dataclass(frozen=True)
class Registry:
    """One kind of extension: `table` maps a name to "module:attribute"; entry points of the group `mftcoder.<kind>` add to it."""

    kind: str
    table: Mapping[str, str]

    def _targets(self) -> dict[str, str]:
        return {**_entry_points(f"mftcoder.{self.kind}"), **self.table}

    def names(self) -> list[str]:
        return sorted(self._targets())

    def load(self, name: str) -> Any:
        """The object behind `name`; ConfigError with a suggestion if there is none."""
        targets = self._targets()
        if name not in targets:
            raise ConfigError(f"unknown {self.kind} '{name}'.{did_you_mean(name, targets)}")
        module, _, attribute = targets[name].partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name in self.table:
                raise
            raise ConfigError(
                f"{self.kind} '{name}': {targets[name]}, which another package registers, cannot be imported: {error}. "
                "Update or remove that package."
            ) from error


BALANCERS = Registry(
    "balancer",
    {
        "uniform": "mftcoder.balancing.methods.uniform:UniformBalancer",
        "coba": "mftcoder.balancing.methods.coba:CobaBalancer",
        "famo": "mftcoder.balancing.methods.famo:FamoBalancer",
        "dwa": "mftcoder.balancing.methods.dwa:DwaBalancer",
        "lbtw": "mftcoder.balancing.methods.lbtw:LbtwBalancer",
        "gradnorm": "mftcoder.balancing.methods.gradnorm:GradNormBalancer",
        "uncertainty": "mftcoder.balancing.methods.uncertainty:UncertaintyBalancer",
        "random": "mftcoder.balancing.methods.random_weighting:RandomBalancer",
        "selfpaced": "mftcoder.balancing.methods.selfpaced:SelfPacedBalancer",
        "pace": "mftcoder.balancing.methods.pace:PaceBalancer",
    },
)
BACKENDS = Registry(
    "backend",
    {
        "auto": "mftcoder.training.backends.auto:auto_backend",
        "local": "mftcoder.training.backends.base:LocalBackend",
        "ddp": "mftcoder.training.backends.ddp:DdpBackend",
        "fsdp2": "mftcoder.training.backends.fsdp2:Fsdp2Backend",
        "deepspeed_zero2": "mftcoder.training.backends.deepspeed:Zero2Backend",
        "deepspeed_zero3": "mftcoder.training.backends.deepspeed:Zero3Backend",
    },
)
FORMATS = Registry(
    "format",
    {
        "chat_rounds": "mftcoder.data.records.formats:chat_rounds",
        "messages": "mftcoder.data.records.formats:messages",
        "sharegpt": "mftcoder.data.records.formats:sharegpt",
        "alpaca": "mftcoder.data.records.formats:alpaca",
        "prompt_completion": "mftcoder.data.records.formats:prompt_completion",
        "text": "mftcoder.data.records.formats:text",
    },
)
ENGINES = Registry(
    "engine",
    {
        "transformers": "mftcoder.generation.batch_engine:BatchEngine",
        "openvino": "mftcoder.generation.batch_engine:BatchEngine",
        "vllm": "mftcoder.generation.vllm_engine:VllmEngine",
    },
)
SCORERS = Registry("scorer", {"transformers": "mftcoder.generation.answer_loss:AnswerLoss"})
BENCHMARKS = Registry(
    "benchmark",
    {
        "humaneval": "mftcoder.benchmarks.families.humaneval:HUMANEVAL",
        "mbpp": "mftcoder.benchmarks.families.mbpp:MBPP",
        "mini": "mftcoder.benchmarks.families.humaneval:MINI",
        "evalplus": "mftcoder.benchmarks.families.evalplus:EVALPLUS",
        "humanevalpack": "mftcoder.benchmarks.families.humanevalpack:HUMANEVALPACK",
        "humanevalx": "mftcoder.benchmarks.families.humanevalx:HUMANEVALX",
        "codefuseeval": "mftcoder.benchmarks.families.codefuseeval:CODEFUSEEVAL",
        "exam": "mftcoder.benchmarks.families.exam:EXAM",
    },
)
