"""The rounds of `mft improve`: the commands that a round runs, and what it trains on.

Expert iteration (rft) trains the given model in each round, not the one of the round before, on the kept answers of all rounds so far
(STaR, arXiv:2203.14465; ReST-EM, arXiv:2312.06585). grpo goes on with one run, on the newest answers only. What options are refused is
left to improve.py.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
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
    closed,
    keep,
    lines_of,
    policy_round_of,
    rollouts_of,
    round_of,
    statuses_of,
)
from mftcoder.benchmarks.rewards import (
    DEFAULT_REWARD,
    Graded,
    Groups,
    RewardWeights,
    groups_of,
    outcome_of,
    single_tests,
)
from mftcoder.config.load import apply_override, dump_yaml, parse_config
from mftcoder.config.schema import RunConfig
from mftcoder.data.batches.packing import plan_rows
from mftcoder.data.prepared.store import prepare
from mftcoder.errors import BenchmarkError, MftError
from mftcoder.generation.journal import read_completions
from mftcoder.jsonl import read_json, read_jsonl, write_json, write_jsonl, write_text
from mftcoder.log import say
from mftcoder.reporting.paired import METHODS, Change, read_changes
from mftcoder.stages import Stages


@dataclass(frozen=True)
class ImproveOptions:
    """How a model is improved. All but `rounds` must stay the same when a stopped command goes on."""

    exam: Path
    out: Path
    train: Path | None = None
    train_share: float | None = None
    method: str = "rft"  # or grpo
    rounds: int = 2
    kinds: tuple[str, ...] = KINDS
    samples: int = 8
    keep: int = 2
    temperature: float = 0.8
    top_p: float = 1.0
    max_new_tokens: int = 512
    score_samples: int = 1
    score_every: int = 1
    updates: int = 1
    reward: str = DEFAULT_REWARD
    grpo: tuple[str, ...] = ()
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


def training_config(
    model: str, options: ImproveOptions, tasks: Sequence[str], number: int, split: int = 1
) -> RunConfig:
    """The config of a round: LoRA on its answers, a task for each of `tasks`, and the user's overrides.

    All rounds of grpo go on in one run, with a constant learning rate, and pass once over each round's data in steps of `split` micro-batches.
    """
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
    if options.method == "grpo":
        del raw["data"]["over_length"]
        raw["tasks"]["practice"]["kind"] = _grpo_kind(options)
        raw["train"] |= {"num_train_epochs": 1, "lr_scheduler_type": "constant", "warmup_steps": 0}
        raw["train"]["gradient_accumulation_steps"] = split
        raw["data"]["on_error"] = "skip"  # a group with an answer longer than a row, which is counted
        raw["output_dir"] = str(options.out / "run")
    if options.device == "cpu":
        raw["backend"] = {"device": "cpu"}
    for override in options.overrides:
        apply_override(raw, override)
    return parse_config(raw, origin="mft improve")


def _grpo_kind(options: ImproveOptions) -> dict[str, Any]:
    """The section of the kind; with one update a round nothing is off-policy, so there is no ratio to clip."""
    raw: dict[str, Any] = {"kind": {"name": "grpo", **({"epsilon": None} if options.updates == 1 else {})}}
    for item in options.grpo:
        apply_override(raw, f"kind.{item}")
    kind: dict[str, Any] = raw["kind"]
    return kind


class Rounds:
    """The stages of all rounds, in their order."""

    def __init__(
        self, model: str, options: ImproveOptions, problems: Problems, stages: Stages, settings: dict[str, Any]
    ):
        self.model, self.options, self.problems, self.stages, self.settings = model, options, problems, stages, settings
        self.folders = {side: options.out / "problems" / side for side in ("practice", "exam")}
        self.found = Improvement(options.out, problems)
        self.metrics: list[Path] = []

    def run(self) -> Improvement:
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
            if self.options.method == "grpo":
                sampler = self._policy_round(number, sampler)
                continue
            kept = self._sample(number, sampler, kept)
            config = training_config(self.model, self.options, [kind for kind in KINDS if kept.get(kind)], number)
            file = out / f"round-{number}" / "train.yaml"
            write_text(file, dump_yaml(config))
            self.stages.run(f"round {number}: training", "train", file)
            sampler = (config.output_path, "--checkpoint", "latest")
            self._score_if_due(number, sampler)
        return self.found

    def _score_if_due(self, number: int, sampler: Sequence[object]) -> None:
        if number % self.options.score_every == 0 or number == self.options.rounds:
            self._score(f"round-{number}", sampler)

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
            for row in read_json(_beside(answers, "metrics_"))["problems"]:
                if not row["passed"]:
                    problems.append(
                        f"{row['id']}: its own solution does not pass its tests ({row['statuses'][0]}). Remove it"
                    )
        if problems:
            raise BenchmarkError(*problems)

    def generated(
        self, name: str, folder: Path, side: str, sampler: Sequence[object], options: Sequence[object]
    ) -> list[Path]:
        """The generations files of a model that answers one side's problems, a file for each kind."""
        kinds = _kinds(getattr(self.problems, side))
        tasks = ",".join(f"exam-{kind}" for kind in kinds)
        given = {
            # One engine for all models, else its change counts as theirs. auto decides for each model anew: vLLM reads no run folder with
            # LoRA weights, and what OpenVINO cannot run goes to transformers.
            "--engine": "transformers",
            "--mode": "chat",
            "--name": name,
            "--max-new-tokens": self.options.max_new_tokens,
            "--device": self.options.device,
            "--template": self.options.template,
            "--batch-size": self.options.batch_size,
        }
        common = [part for key, value in given.items() if value is not None for part in (key, value)]
        places = ("--task", tasks, "--data-dir", self.folders[side], "--out", folder)
        self.stages.run(f"{name}: answers to the {side}", "generate", *sampler, *places, *common, *options)
        return [folder / f"generations_exam-{kind}_{name}.json" for kind in kinds]

    def _evaluated(self, name: str, files: Sequence[Path], side: str, samples: int) -> list[Path]:
        """The metrics files of these answers."""
        sizes = ",".join(map(str, dict.fromkeys((1, samples))))
        self.stages.run(
            f"{name}: tests of the {side}", "evaluate", *files, "--data-dir", self.folders[side], "-k", sizes
        )
        return [_beside(file, "metrics_") for file in files]

    def _score(self, name: str, sampler: Sequence[object]) -> None:
        """Let a model sit the exam, and compare it with the one before the first round."""
        samples = self.options.score_samples
        how = self._sampling(samples, self.options.seed) if samples > 1 else ()
        files = self.generated(name, self.options.out / name / "scores", "exam", sampler, how)
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

    def _practised(self, number: int, sampler: Sequence[object]) -> tuple[list[Path], list[dict[str, Any]]]:
        """The generations files of a round's samples, and their metrics."""
        name, samples = f"round-{number}", self.options.samples
        how = self._sampling(samples, self.options.seed + number)
        files = self.generated(name, self.options.out / name / "samples", "practice", sampler, how)
        return files, [read_json(path) for path in self._evaluated(name, files, "practice", samples)]

    def _note(self, entry: Round) -> None:
        self.found.rounds.append(entry)
        self.found.write(self.settings)
        for line in lines_of(entry):
            say(line)

    def _sample(
        self, number: int, sampler: Sequence[object], before: dict[str, list[Record]]
    ) -> dict[str, list[Record]]:
        """Sample, run, and write what is trained on: the kept answers of each kind. MftError if there is none."""
        chosen, folder = self.options, self.options.out / f"round-{number}"
        files, metrics = self._practised(number, sampler)
        kept: dict[str, Kept] = {}
        for kind, file, record in zip(_kinds(self.problems.practice), files, metrics, strict=True):
            prompts = {str(entry["task_id"]): str(entry["instruction"]) for entry in self.problems.practice}
            kept[kind] = keep(_rollouts(file, record), prompts, chosen.keep, number, before.get(kind, ()))
            if kept[kind].records:
                write_jsonl(folder / "data" / kind / "train.jsonl", kept[kind].records)
        entry = round_of(number, metrics, kept, chosen.samples, sum(map(len, before.values())))
        self._note(entry)
        if not entry.kept:
            raise MftError(
                f"round {number}: no answer is left to train on: {entry.passed} of {entry.rollouts} passed, "
                f"{entry.left_out['cut']} of them cut by --max-new-tokens. Take easier problems, more --samples, or another model"
            )
        return {kind: list(found.records) for kind, found in kept.items()}

    def _policy_round(self, number: int, sampler: tuple[object, ...]) -> tuple[object, ...]:
        """Sample, reward, and train one pass over the groups with a signal. Returns what samples next."""
        file = self.options.out / f"round-{number}" / "data" / "practice" / "train.jsonl"
        groups = self._groups(number, sampler)
        if groups.records:
            write_jsonl(file, groups.records)
            whole = training_config(self.model, self.options, ["practice"], number)
            split = -(-self.rows_of(whole, number) // (whole.train.per_device_train_batch_size * self.options.updates))
            config = training_config(self.model, self.options, ["practice"], number, split)
            path = file.parents[2] / "train.yaml"
            write_text(path, dump_yaml(config))
            self.stages.run(f"round {number}: training", "train", path, "--allow-changes")
            sampler = (config.output_path, "--checkpoint", "latest")
        elif number == self.options.rounds and not any(entry.kept for entry in self.found.rounds):
            raise MftError(
                "no group of answers has a signal: within each, all rewards are equal, or all answers were cut. Take easier problems, more "
                "--samples, a higher --temperature, or a --reward with more parts"
            )
        self._score_if_due(number, sampler)
        return sampler

    def rows_of(self, config: RunConfig, number: int) -> int:
        """The rows of an epoch of the groups, which are prepared for that. Those with an answer that is longer than a row are counted."""
        store = prepare(config)
        samples, entry = store.train(0), self.found.rounds[-1]
        if store.skipped:
            skipped = store.statistics[0].skipped
            say(f"round {number}: {skipped} groups left out: {store.skipped[0]}")
            left_out = {**entry.left_out, "long": skipped}
            self.found.rounds[-1] = replace(entry, kept=len(samples), new=len(samples), left_out=left_out)
            self.found.write(self.settings)
        return len(plan_rows(samples.lengths, config.data.packing, config.data.max_length))

    def _groups(self, number: int, sampler: Sequence[object]) -> Groups:
        """Sample and run a round's answers, each test of a problem alone too, and reward them."""
        files, metrics = self._practised(number, sampler)
        names = {str(record["task_id"]): str(record["entry_point"]) for record in self.problems.practice}
        alone = self._single_tests(number, files)
        graded, weights = [], RewardWeights.parse(self.options.reward)
        for file, found in zip(files, metrics, strict=True):
            messages = _error_messages(file)
            for one in _rollouts(file, found):
                key = f"{one.problem_id}#{one.sample}"
                parts = alone.get((one.problem_id, one.sample), [])
                verdict = statuses_of(found)[one.problem_id][one.sample]
                outcome = outcome_of(verdict, messages.get(key, ""), one.text, names[one.problem_id], parts)
                graded.append(Graded(one.problem_id, closed(one.text), one.is_cut, weights.reward(outcome)))
        groups = groups_of(graded, {str(one["task_id"]): str(one["instruction"]) for one in self.problems.practice})
        self._note(policy_round_of(number, metrics, groups, self.options.samples))
        return groups

    def _single_tests(self, number: int, files: Sequence[Path]) -> dict[tuple[str, int], list[str]]:
        """(problem, sample) -> the verdict on each test alone."""
        folder = self.options.out / f"round-{number}" / "single-tests"
        parts = {str(one["task_id"]): single_tests(one) for one in self.problems.practice}
        given = [part for of_problem in parts.values() for part in of_problem]
        found: dict[tuple[str, int], list[str]] = {}
        if not given:
            return found
        write_jsonl(folder / FILE, given)
        answers = []
        for kind, file in zip(_kinds(self.problems.practice), files, strict=True):
            of_kind = [one for one in self.problems.practice if one["kind"] == kind]
            texts = [
                of_one for one, of_one in zip(of_kind, read_json(file), strict=True) for _ in parts[str(one["task_id"])]
            ]
            if texts:
                answers.append(folder / file.name)
                write_json(answers[-1], texts)
        self.stages.run(f"round-{number}: each test alone", "evaluate", *answers, "--data-dir", folder)
        for file in answers:
            for name, statuses in statuses_of(read_json(_beside(file, "metrics_"))).items():
                for sample, status in enumerate(statuses):
                    found.setdefault((name.rpartition("#")[0], sample), []).append(status)
        return found


def _error_messages(generations: Path) -> dict[str, str]:
    """`problem#sample` -> what the program ended with, from the journal of the evaluation."""
    path = _beside(generations, "results_").with_suffix(".jsonl")
    return {record["key"]: record["result"]["stderr"] for _, record in read_jsonl(path) if "key" in record}


def _kinds(records: Sequence[Record]) -> list[str]:
    return [kind for kind in KINDS if any(record["kind"] == kind for record in records)]


def _beside(generations: Path, prefix: str) -> Path:
    return generations.with_name(generations.name.replace("generations_", prefix, 1))


def _rollouts(generations: Path, metrics: dict[str, Any]) -> list[Rollout]:
    """The answers of a generations file with their verdicts."""
    return rollouts_of(read_completions(_beside(generations, "completions_").with_suffix(".jsonl")), metrics)
