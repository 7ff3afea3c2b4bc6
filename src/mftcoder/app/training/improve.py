"""`mft improve`: expert iteration. Sample answers to practice problems, keep what passes its tests, fine-tune, score, and again.

Every stage is a command of `mft` that runs as a process and goes on where it was stopped: answers and results by their journals,
training by its checkpoints. A finished stage does not run again. Each round trains the given model, not the one of the round before,
on the kept answers of all rounds so far (STaR, arXiv:2203.14465; ReST-EM, arXiv:2312.06585); that one samples the next answers.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mftcoder.benchmarks.families.exam import FILE, KINDS, benchmark_of, solution
from mftcoder.benchmarks.passk import INTERVAL, PassAtK
from mftcoder.benchmarks.practice import (
    Kept,
    Problems,
    Record,
    Rollout,
    Round,
    apart,
    divided,
    keep,
    lines_of,
    read_problems,
    round_of,
)
from mftcoder.config.load import apply_override, dump_yaml, parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.errors import BenchmarkError, ConfigError, Interrupted, MftError, UnjudgedError
from mftcoder.generation.journal import read_completions
from mftcoder.jsonl import JournalFile, has_settings, read_json, read_jsonl, write_json, write_jsonl, write_text
from mftcoder.log import say
from mftcoder.processes import run_python, sigterm_as_interrupt
from mftcoder.reporting.paired import METHODS, Change, read_changes

GO_ON = "The same command goes on where this one was."
OWN_FIELDS = ("tasks", "output_dir", "model.model_name_or_path")


@dataclass(frozen=True)
class ImproveOptions:
    """How a model is improved. All but `rounds` must stay the same when a stopped command goes on."""

    exam: Path
    out: Path
    train: Path | None = None
    train_share: float | None = None
    rounds: int = 2
    kinds: tuple[str, ...] = KINDS
    samples: int = 8
    keep: int = 2
    temperature: float = 0.8
    top_p: float = 1.0
    max_new_tokens: int = 512
    score_samples: int = 1
    train_limit: int | None = None
    limit: int | None = None
    seed: int = 0
    template: str | None = None
    batch_size: int | None = None
    device: str = "auto"
    overrides: tuple[str, ...] = ()


@dataclass
class Improvement:
    """All rounds, every score of the exam by model, and what changed against the given model."""

    out: Path
    problems: Problems
    rounds: list[Round] = field(default_factory=list)
    scores: dict[str, dict[str, list[PassAtK]]] = field(default_factory=dict)  # exam task -> model -> scores
    changes: list[Change] = field(default_factory=list)

    def write(self, settings: dict[str, Any]) -> None:
        """Write improve.json."""
        record = {
            "settings": settings,
            "practice problems": len(self.problems.practice),
            "practice problems left out, because they are in the exam": self.problems.shared,
            "exam problems": len(self.problems.exam),
            "rounds": [asdict(entry) for entry in self.rounds],
            "scores": {
                task: {model: [asdict(score) for score in scores] for model, scores in found.items()}
                for task, found in self.scores.items()
            },
            "interval": INTERVAL,
            "changes": [_change_record(change) for change in self.changes],
            "changes are compared by": METHODS,
        }
        write_json(self.out / "improve.json", record)


def _change_record(change: Change) -> dict[str, Any]:
    counts = {"gained": len(change.gained), "lost": len(change.lost), "problems": len(change.passed)}
    return {
        "task": change.task,
        "models": change.models,
        **counts,
        "value": change.value,
        "interval": change.interval,
        "p": change.p,
    }


class _Stages:
    """The stages that are done, in `stages.jsonl` below the output folder, which is locked for this process."""

    def __init__(self, out: Path, settings: dict[str, Any]):
        path = out / "stages.jsonl"
        _check_folder(out, path, settings)
        self._file = JournalFile(path, settings, MftError)
        self._file.rewrite(self._file.records)
        self._done = {record["stage"] for record in self._file.records}

    def run(self, name: str, *command: object) -> None:
        """Run `mft COMMAND`, unless it is done."""
        if name in self._done:
            say(f"{name}: done before")
            return
        words = [str(word) for word in command]
        by_hand = shlex.join(["mft", *words])
        say(f"{name}\n$ {by_hand}")
        code, _ = run_python(["-m", "mftcoder", *words], go_on=GO_ON)
        if code == UnjudgedError.exit_code:
            raise UnjudgedError(f"{name}: could not be judged; the message stands above. {GO_ON} By hand: {by_hand}")
        if code:
            raise MftError(f"{name}: ended with exit code {code}; its message stands above. By hand: {by_hand}")
        self._file.append({"stage": name})
        self._done.add(name)

    def close(self) -> None:
        """Unlock the folder."""
        self._file.close()


def _check_folder(out: Path, path: Path, settings: dict[str, Any]) -> None:
    """MftError if the folder holds something else, or what other settings made."""
    if not out.exists() or has_settings(path, settings) or not any(out.iterdir()):
        return
    if not path.is_file():
        raise MftError(f"{out}: holds something else than an `mft improve`. Give another --out")
    first: Any = next((record for _, record in read_jsonl(path)), {})
    before = first.get("settings", {}) if isinstance(first, dict) else {}
    changed = [name for name in settings if settings[name] != before.get(name)]
    lines = [f"{out}: made with another {name}: {before.get(name)!r}, now {settings[name]!r}" for name in changed]
    raise MftError(*lines, f"{out}: give another --out, or the same settings. Only --rounds may change")


def improve(model: str, options: ImproveOptions) -> Improvement:
    """Improve the model, or go on. Returns all rounds and scores, which improve.json holds too."""
    check_options(model, options)
    problems, origins = _problems(options)
    training_config(model, options, options.kinds[:1], 1)  # a mistake is found before anything is sampled
    settings = {"model": model, **origins, **json.loads(json.dumps(asdict(options), default=str))}
    for name in ("rounds", "out", "exam", "train"):  # the two files are known by their content
        del settings[name]
    stages = _Stages(options.out, settings)
    try:
        with sigterm_as_interrupt():
            return _Work(model, options, problems, stages, settings).run()
    except KeyboardInterrupt:
        raise Interrupted(GO_ON) from None
    finally:
        stages.close()


def check_options(model: str, options: ImproveOptions) -> None:
    """ConfigError with every mistake that can be seen before a file is read."""
    unknown = [kind for kind in options.kinds if kind not in KINDS]
    own = [text for text in options.overrides if any(_sets(text, name) for name in OWN_FIELDS)]
    both = "give either --train FILE, with practice problems, or --train-share SHARE, which divides the exam by modules"
    mistakes = {
        f"{both}: a model must not train on the problems that it is scored on": (options.train is None)
        == (options.train_share is None),
        f"--kinds: unknown: {', '.join(unknown)}. Known: {', '.join(KINDS)}": unknown or not options.kinds,
        "--samples above 1 needs a --temperature above 0: greedy answers are all the same": options.samples > 1
        and options.temperature == 0,
        "--score-samples above 1 needs a --temperature above 0": options.score_samples > 1 and options.temperature == 0,
        f"{model}: is a run folder; a round trains a whole model. Export it first: mft export {model} FOLDER": (
            Path(model) / "checkpoints"
        ).is_dir(),
        f"{', '.join(own)}: `mft improve` sets this itself": own,
    }
    if found := [mistake for mistake, applies in mistakes.items() if applies]:
        raise ConfigError(*found)


def _sets(override: str, name: str) -> bool:
    field = override.partition("=")[0].strip()
    return field == name or field.startswith(f"{name}.") or name.startswith(f"{field}.")


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


def training_config(model: str, options: ImproveOptions, tasks: Sequence[str], number: int) -> RunConfig:
    """The config of a round: LoRA on the kept answers, a task for each kind of problem, and the user's overrides."""
    folder = options.out / f"round-{number}"
    raw: dict[str, Any] = {
        "model": {"model_name_or_path": model},
        "tasks": {kind: {"files": str(folder / "data" / kind / "train.jsonl")} for kind in tasks},
        "data": {"val_size": 0.0, "over_length": "drop", "chat_template": options.template or "auto"},
        "train": {
            "eval_strategy": "no",
            "warmup_steps": 0.1,
            "save_steps": 20,
            "save_total_limit": 1,
            "seed": options.seed,
        },
        "output_dir": str(folder / "run"),
    }
    if options.device == "cpu":
        raw["backend"] = {"device": "cpu"}
    for override in options.overrides:
        apply_override(raw, override)
    return parse_config(raw, origin="mft improve")


class _Work:
    """The stages of all rounds, in their order."""

    def __init__(
        self, model: str, options: ImproveOptions, problems: Problems, stages: _Stages, settings: dict[str, Any]
    ):
        self.model, self.options, self.problems, self.stages, self.settings = model, options, problems, stages, settings
        self.folders = {side: options.out / "problems" / side for side in ("practice", "exam")}
        self.found = Improvement(options.out, problems)
        self.metrics: list[Path] = []

    def run(self) -> Improvement:
        """All rounds."""
        out = self.options.out
        for side, folder in self.folders.items():
            write_jsonl(folder / FILE, getattr(self.problems, side))
        say(f"{len(self.problems.practice)} practice problems, {len(self.problems.exam)} exam problems")
        if self.problems.shared:
            say(f"{self.problems.shared} practice problems are in the exam too, and are left out")
        self._check_references()
        self._score("base", (self.model,))
        sampler: tuple[object, ...] = (self.model,)
        kept: dict[str, list[Record]] = {}
        for number in range(1, self.options.rounds + 1):
            kept = self._sample(number, sampler, kept)
            config = training_config(self.model, self.options, [kind for kind in KINDS if kept.get(kind)], number)
            file = out / f"round-{number}" / "train.yaml"
            write_text(file, dump_yaml(config))
            self.stages.run(f"round {number}: training", "train", file)
            sampler = (config.output_path, "--checkpoint", "latest")
            self._score(f"round-{number}", sampler)
        return self.found

    def _check_references(self) -> None:
        """BenchmarkError for every practice problem whose own solution fails its tests. One without a solution is not checked."""
        out, problems = self.options.out / "references", list[str]()
        known = [record for record in self.problems.practice if record["canonical_solution"].strip()]
        write_jsonl(out / FILE, known)
        for kind in _kinds(known):
            benchmark = benchmark_of(kind, known, str(out / FILE))
            answers = out / f"generations_exam-{kind}_reference.json"
            write_json(answers, [[solution(problem)] for problem in benchmark.problems])
            self.stages.run(f"references: {kind}", "evaluate", answers, "--data-dir", out)
            for row in read_json(_metrics_of(answers))["problems"]:
                if not row["passed"]:
                    problems.append(
                        f"{row['id']}: its own solution does not pass its tests ({row['statuses'][0]}). Remove it"
                    )
        if problems:
            raise BenchmarkError(*problems)

    def _generated(
        self, name: str, folder: Path, side: str, sampler: Sequence[object], options: Sequence[object]
    ) -> list[Path]:
        """The generations files of a model that answers one side's problems, a file for each kind."""
        kinds = _kinds(getattr(self.problems, side))
        tasks = ",".join(f"exam-{kind}" for kind in kinds)
        given = {"--template": self.options.template, "--batch-size": self.options.batch_size}
        more = [part for key, value in given.items() if value is not None for part in (key, value)]
        common = (
            "--mode",
            "chat",
            "--name",
            name,
            "--max-new-tokens",
            self.options.max_new_tokens,
            "--device",
            self.options.device,
        )
        places = ("--task", tasks, "--data-dir", self.folders[side], "--out", folder)
        self.stages.run(f"{name}: answers to the {side}", "generate", *sampler, *places, *common, *more, *options)
        return [folder / f"generations_exam-{kind}_{name}.json" for kind in kinds]

    def _evaluated(self, name: str, files: Sequence[Path], side: str, samples: int) -> list[Path]:
        """The metrics files of these answers."""
        sizes = ",".join(map(str, dict.fromkeys((1, samples))))
        self.stages.run(
            f"{name}: tests of the {side}", "evaluate", *files, "--data-dir", self.folders[side], "-k", sizes
        )
        return [_metrics_of(file) for file in files]

    def _score(self, name: str, sampler: Sequence[object]) -> None:
        """Let a model sit the exam, and compare it with the one before the first round."""
        samples = self.options.score_samples
        how = self._sampling(samples, self.options.seed) if samples > 1 else ()
        files = self._generated(name, self.options.out / name / "scores", "exam", sampler, how)
        paths = self._evaluated(name, files, "exam", samples)
        for path in paths:
            metrics = read_json(path)
            scores = [PassAtK(**score) for score in metrics["scores"].values()]
            self.found.scores.setdefault(metrics["task"], {})[name] = scores
        self.metrics += paths
        self.found.changes = read_changes(self.metrics)
        self.found.write(self.settings)

    def _sampling(self, samples: int, seed: int) -> tuple[object, ...]:
        chosen = self.options
        return ("--n-samples", samples, "--temperature", chosen.temperature, "--top-p", chosen.top_p, "--seed", seed)

    def _sample(
        self, number: int, sampler: Sequence[object], before: dict[str, list[Record]]
    ) -> dict[str, list[Record]]:
        """Sample, run, and write what is trained on: the kept answers of each kind. MftError if there is none."""
        chosen, folder = self.options, self.options.out / f"round-{number}"
        how = self._sampling(chosen.samples, chosen.seed + number)
        files = self._generated(f"round-{number}", folder / "samples", "practice", sampler, how)
        metrics = [read_json(path) for path in self._evaluated(f"round-{number}", files, "practice", chosen.samples)]
        kept: dict[str, Kept] = {}
        for kind, file, record in zip(_kinds(self.problems.practice), files, metrics, strict=True):
            prompts = {str(entry["task_id"]): str(entry["instruction"]) for entry in self.problems.practice}
            kept[kind] = keep(rollouts(file, record), prompts, chosen.keep, number, before.get(kind, ()))
            if kept[kind].records:
                write_jsonl(folder / "data" / kind / "train.jsonl", kept[kind].records)
        entry = round_of(number, metrics, kept, chosen.samples, sum(map(len, before.values())))
        self.found.rounds.append(entry)
        self.found.write(self.settings)
        for line in lines_of(entry):
            say(line)
        if not entry.kept:
            raise MftError(
                f"round {number}: no answer is left to train on: {entry.passed} of {entry.rollouts} passed, "
                f"{entry.left_out['cut']} of them cut by --max-new-tokens. Take easier problems, more --samples, or another model"
            )
        return {kind: list(found.records) for kind, found in kept.items()}


def _kinds(records: Sequence[Record]) -> list[str]:
    return [kind for kind in KINDS if any(record["kind"] == kind for record in records)]


def _metrics_of(generations: Path) -> Path:
    return generations.with_name(generations.name.replace("generations_", "metrics_", 1))


def rollouts(generations: Path, metrics: dict[str, Any]) -> list[Rollout]:
    """Every sampled answer with its verdict, by problem and sample."""
    journal = generations.with_name(generations.name.replace("generations_", "completions_", 1)).with_suffix(".jsonl")
    statuses = {str(row["id"]): row["statuses"] for row in metrics["problems"]}
    found = [
        Rollout(
            record["problem_id"],
            record["sample"],
            record["text"],
            record["answer"],
            record["finish_reason"] == "length",
            statuses[record["problem_id"]][record["sample"]] == "passed",
        )
        for record in read_completions(journal)
    ]
    order = {name: number for number, name in enumerate(statuses)}
    return sorted(found, key=lambda rollout: (order[rollout.problem_id], rollout.sample))
