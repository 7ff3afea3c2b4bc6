"""`mft improve`: sample answers to practice problems, run their tests, train on the outcome, score, and again.

Every stage is a command of `mft` that runs as a process and goes on where it was stopped: answers and results by their journals,
training by its checkpoints. A finished stage does not run again. rounds.py has the stages.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mftcoder import cache
from mftcoder.app.training.rounds import Improvement, ImproveOptions, Rounds, training_config
from mftcoder.benchmarks.families.exam import KINDS
from mftcoder.benchmarks.practice import Problems, Record, apart, divided, read_problems
from mftcoder.benchmarks.rewards import RewardWeights
from mftcoder.config.effects import Run, fields_without_effect
from mftcoder.errors import ConfigError, Interrupted
from mftcoder.processes import sigterm_as_interrupt
from mftcoder.stages import GO_ON, Stages

OWN_FIELDS = ("tasks", "output_dir", "model.model_name_or_path")
MODEL_FILES = (".safetensors", ".bin", ".gguf", ".json", ".jinja", ".model")
OWN_FIELDS_OF_GRPO = (
    "train.num_train_epochs",
    "train.max_steps",
    "train.gradient_accumulation_steps",
    "train.resume_from_checkpoint",
)
"""All rounds of grpo go on in one run, and each passes once over its answers in --updates updates."""


def improve(model: str, options: ImproveOptions) -> Improvement:
    """Improve the model, or go on. Returns all rounds and scores, which improve.json holds too."""
    check_options(model, options)
    problems, origins = _problems(options)
    tasks = ["practice"] if options.method == "grpo" else options.kinds[:1]
    config = training_config(model, options, tasks, 1)  # a mistake is found before anything is sampled
    idle = [line for line in fields_without_effect(Run(config)) if line.startswith("tasks.practice.kind.")]
    if idle:
        raise ConfigError(*(f"--grpo: {line.removeprefix('tasks.practice.kind.')}" for line in idle))
    settings = {"model": model, "content of the model": _content(model), **origins}
    settings |= json.loads(json.dumps(asdict(options), default=str))
    for name in ("rounds", "out", "exam", "train"):  # the two files are known by their content
        del settings[name]
    stages = Stages(options.out, settings)
    try:
        with sigterm_as_interrupt():
            return Rounds(model, options, problems, stages, settings).run()
    except KeyboardInterrupt:
        raise Interrupted(GO_ON) from None
    finally:
        stages.close()


def check_options(model: str, options: ImproveOptions) -> None:
    """ConfigError with every mistake that can be seen before a file is read."""
    unknown = [kind for kind in options.kinds if kind not in KINDS]
    fields = OWN_FIELDS + (OWN_FIELDS_OF_GRPO if options.method == "grpo" else ())
    own = [text for text in options.overrides if any(_sets(text, name) for name in fields)]
    both = "give either --train FILE, with practice problems, or --train-share SHARE, which divides the exam by modules"
    usual = ImproveOptions(options.exam, options.out)
    idle = ("keep",) if options.method == "grpo" else ("updates", "reward", "grpo")
    given = [name for name in idle if getattr(options, name) != getattr(usual, name)]
    mistakes = {
        f"--method {options.method}: unknown. Known: rft, grpo": options.method not in ("rft", "grpo"),
        f"--{', --'.join(given)}: has no effect with --method {options.method}": given,
        "--grpo: name: the kind is grpo. Leave it out": any(_sets(item, "name") for item in options.grpo),
        "--samples: a group of one answer has no advantage. Give at least 2": options.method == "grpo"
        and options.samples < 2,
        f"{both}: a model must not train on the problems that it is scored on": (options.train is None)
        == (options.train_share is None),
        f"--kinds: unknown: {', '.join(unknown)}. Known: {', '.join(KINDS)}": unknown or not options.kinds,
        "--samples above 1 needs a --temperature above 0: greedy answers are all the same": options.samples > 1
        and options.temperature == 0,
        "--score-samples above 1 needs a --temperature above 0": options.score_samples > 1 and options.temperature == 0,
        f"{model}: is a run folder; a round trains a whole model. Export it first: mft export {model} FOLDER": (
            Path(model) / "checkpoints"
        ).is_dir(),
        f"{model}: no such model folder": (Path(model).is_absolute() or model.startswith((".", "~")))
        and not Path(model).expanduser().exists(),
        f"{', '.join(own)}: `mft improve` sets this itself": own,
    }
    RewardWeights.parse(options.reward)
    if found := [mistake for mistake, applies in mistakes.items() if applies]:
        raise ConfigError(*found)


def _sets(override: str, name: str) -> bool:
    field = override.partition("=")[0].strip()
    return field == name or field.startswith(f"{name}.") or name.startswith(f"{field}.")


def _content(model: str) -> str:
    """A hash of the files of a local model, so that another one at the same place is noticed; that of no file for a Hub id."""
    path = Path(model).expanduser()
    files = path.iterdir() if path.is_dir() else [path]
    return cache.key(*sorted(file for file in files if file.is_file() and file.suffix in MODEL_FILES))


def _problems(options: ImproveOptions) -> tuple[Problems, dict[str, str]]:
    """The problems that are trained on and scored, and where they come from."""
    exam, origin = read_problems(options.exam, options.kinds)
    if options.train is None:
        assert options.train_share is not None
        found, origins = divided(exam, options.train_share, options.seed), {"problems": origin}
    else:
        practice, practice_origin = read_problems(options.train, options.kinds)
        found, origins = apart(practice, exam), {"problems": origin, "practice": practice_origin}
    practice, exam = (
        _first(side, most) for side, most in ((found.practice, options.train_limit), (found.exam, options.limit))
    )
    return Problems(tuple(practice), tuple(exam), found.shared), origins


def _first(records: Sequence[Record], most: int | None) -> list[Record]:
    """The first problems of each kind."""
    by_kind = {kind: [record for record in records if record["kind"] == kind][:most] for kind in KINDS}
    return [record for chosen in by_kind.values() for record in chosen]
