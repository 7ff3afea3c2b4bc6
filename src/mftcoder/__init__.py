"""mftcoder: multi-task fine-tuning for code language models, and the proof that it worked.

    from mftcoder import load_config, train, export, generate, evaluate

docs/python.md shows how to use it. Importing the package imports nothing heavy: a name is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mftcoder.app.data.prepare import PreparedData, prepare
    from mftcoder.app.results.export import export
    from mftcoder.app.scoring.evaluate import Score, Scores, evaluate
    from mftcoder.app.scoring.generate import generate
    from mftcoder.app.training.compare import Comparison, compare
    from mftcoder.app.training.steps import training_steps
    from mftcoder.app.training.train import TrainResult, train
    from mftcoder.balancing.standalone import Balancer
    from mftcoder.benchmarks.passk import estimate as estimate_pass_at_k
    from mftcoder.benchmarks.passk import pass_at_k
    from mftcoder.config.load import load_config, with_overrides
    from mftcoder.config.schema import RunConfig
    from mftcoder.data.batches.packing import pack
    from mftcoder.errors import Interrupted, MftError
    from mftcoder.execution.run_programs import Sandbox, python_program
    from mftcoder.execution.sandbox import ExecutionResult, Limits, Program
    from mftcoder.training.losses.task_objective import TaskObjective

_HOMES = {
    "config.schema": ("RunConfig",),
    "config.load": ("load_config", "with_overrides"),
    "app.data.prepare": ("prepare", "PreparedData"),
    "app.training.train": ("train", "TrainResult"),
    "app.training.steps": ("training_steps",),
    "app.training.compare": ("compare", "Comparison"),
    "app.results.export": ("export",),
    "app.scoring.generate": ("generate",),
    "app.scoring.evaluate": ("evaluate", "Score", "Scores"),
    "training.losses.task_objective": ("TaskObjective",),
    "balancing.standalone": ("Balancer",),
    "data.batches.packing": ("pack",),
    "execution.run_programs": ("Sandbox", "python_program"),
    "execution.sandbox": ("ExecutionResult", "Limits", "Program"),
    "benchmarks.passk": ("pass_at_k", "estimate_pass_at_k"),
    "errors": ("Interrupted", "MftError"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_OWN_NAMES = {"estimate_pass_at_k": "estimate"}

__all__ = [
    "Balancer",
    "Comparison",
    "ExecutionResult",
    "Interrupted",
    "Limits",
    "MftError",
    "PreparedData",
    "Program",
    "RunConfig",
    "Sandbox",
    "Score",
    "Scores",
    "TaskObjective",
    "TrainResult",
    "__version__",
    "compare",
    "estimate_pass_at_k",
    "evaluate",
    "export",
    "generate",
    "load_config",
    "pack",
    "pass_at_k",
    "prepare",
    "python_program",
    "train",
    "training_steps",
    "with_overrides",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mftcoder' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"mftcoder.{_HOME_OF[name]}"), _OWN_NAMES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
