"""`mft improve`."""

from typing import TYPE_CHECKING, Any

import click

from mftcoder.cli.console import console, shown
from mftcoder.cli.options import COUNT, PATH, SEED, Finite, Names, device, template

if TYPE_CHECKING:
    from mftcoder.app.training.improve import Improvement


@click.command("improve", short_help="Train a model on its own answers that pass their tests.")
@click.argument("model")
@click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option(
    "--exam",
    type=PATH,
    required=True,
    help="Exam that scores the model: a folder of `mft data mine --exam`, a .jsonl file in HumanEval's format, or mini.",
)
@click.option("--train", type=PATH, help="Practice problems: another exam folder or file.")
@click.option(
    "--train-share",
    type=Finite(0, 1, min_open=True, max_open=True),
    help="Practise on this share of the exam's problems, divided by modules, and score the others.",
)
@click.option("--out", type=PATH, required=True, help="Folder of problems, samples, runs and scores.")
@click.option(
    "--method",
    type=click.Choice(["rft", "grpo"]),
    default="rft",
    help="rft trains on the answers that pass. grpo raises the answers above the mean reward of their group and lowers the others.",
)
@click.option("--rounds", type=COUNT, default=2, help="Rounds; a later command may ask for more.")
@click.option("--kinds", type=Names(), default="complete,write,repair,test", help="Kinds of problems to take.")
@click.option("--samples", type=COUNT, default=8, help="Answers sampled for each practice problem.")
@click.option("--keep", type=COUNT, default=2, help="Most answers of a problem to train on.")
@click.option("--temperature", type=Finite(min=0), default=0.8, help="Temperature of the samples.")
@click.option("--top-p", type=Finite(0, 1, min_open=True), default=1.0, help="Nucleus sampling of the samples.")
@click.option("--max-new-tokens", type=COUNT, default=512, help="Most tokens of a sampled or scored answer.")
@click.option(
    "--score-samples",
    type=COUNT,
    default=1,
    help="Answers for each exam problem: 1 greedy one, which allows a p value, or N samples for pass@1 and pass@N.",
)
@click.option("--score-every", type=COUNT, default=1, help="Score every N-th round, and the last.")
@click.option("--updates", type=COUNT, default=1, help="grpo: most updates of the weights in a round.")
@click.option(
    "--reward",
    default="tests=1,compiles=0.1,format=0.1",
    metavar="PART=WEIGHT,...",
    help="grpo: what counts. tests: the share that passes; passed: all pass; compiles; format: a fenced block.",
)
@click.option(
    "--grpo",
    type=Names(),
    default=(),
    metavar="OPTION=VALUE,...",
    help="grpo: options of `kind: grpo`, such as beta=0.04,length=tokens.",
)
@click.option("--train-limit", type=COUNT, metavar="N", help="Take only the first N practice problems of each kind.")
@click.option("--limit", type=COUNT, metavar="N", help="Take only the first N exam problems of each kind.")
@click.option("--seed", type=SEED, default=0, help="Seed of the division and of sampling.")
@click.option("--batch-size", type=COUNT, help="Answers generated at the same time.")
@template
@device
def command(model: str, **options: Any) -> None:
    """Improve MODEL on its own answers: sample them, run their tests, train on the outcome, score, and repeat.

    Training is LoRA, unless adapter.type=full; overrides change its config. A problem that is scored is never trained on. The same
    command continues a stopped one. Writes improve.json.

    \b
    mft improve models/my --exam exam --train-share 0.5 --out improved
    mft improve models/my --exam exam --train practice --rounds 3 --samples 16 --out improved
    mft improve models/my --exam exam --train-share 0.5 --out improved train.learning_rate=5e-4
    mft improve models/my --exam exam --train-share 0.5 --out better --method grpo --rounds 50 --score-every 10
    """
    from mftcoder.app.training.improve import ImproveOptions, improve

    with shown():
        found = improve(model, ImproveOptions(**options))
    print_improvement(found)


def print_improvement(found: "Improvement") -> None:
    """The rounds, the exam's scores by model, and a sentence for each change."""
    from mftcoder.reporting.terminal import print_table

    output = console()
    titles = ("round", "answers", "pass", "solved by none", "some", "all", "kept", "new", "mean reward")
    rows = [
        [
            str(part)
            for part in (entry.number, entry.rollouts, entry.passed, *entry.solved.values(), entry.kept, entry.new)
        ]
        + ["–" if entry.mean_reward is None else f"{entry.mean_reward:.3f}"]
        for entry in found.rounds
    ]
    print_table(output, titles, rows, numbers=titles)
    output.print()
    scores = [
        [
            task,
            model,
            f"pass@{score.k}",
            f"{score.value:.1%}",
            f"{score.low:.1%} to {score.high:.1%}",
            str(score.problems),
        ]
        for task, models in found.scores.items()
        for model, estimated in models.items()
        for score in estimated
    ]
    columns = ("exam", "model", "score", "value", "95% interval", "problems")
    print_table(output, columns, scores, numbers=columns[3:])
    output.print()
    for change in found.changes:
        output.print(f"{change.models[1]}: {change.sentence}", highlight=False, soft_wrap=True)
    output.print(str(found.out / "improve.json"), highlight=False, soft_wrap=True)
