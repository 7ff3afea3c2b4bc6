"""Balancers on simulated tasks: how well each brings fast, slow, over-fitting and flat tasks to their best together.

No model: a task's progress u grows with its weight, its held-out loss falls as a sum of two exponentials of u and rises again once
u is past the point where the task over-fits. Worlds "from scratch" are harsher: losses first fall by nats within a twentieth of the run
and then as 1 / (1 + u), a task with little weight is forgotten, weight in few hands helps less, and rows do not all move as their task does.
A balancer sees what it would see in a run: noisy train losses, optimistic once samples repeat, noisy validation rows of different
hardness, and forty validations. Prints one Markdown table a setting, means over seeds:

    compromise   distance from a task's own best at the step with the lowest mean loss, as a share of what the task can gain
    short        the same distance from the best that the task could reach in this world
    worst        `short` of the worst task
    spread       distance between the first and the last task's best step, as a fraction of the run
    regression   distance from the own best at the end of the run
    rows         validation rows measured, as a share of the rows trained

    python performance/balancers_simulated.py --seeds 24
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mftcoder.balancing.base import Float, RunFacts, TaskBalancer, TaskLosses, build_balancer
from mftcoder.balancing.methods.coba import CobaOptions
from mftcoder.balancing.methods.famo import FamoOptions
from mftcoder.config.balancer import BalancerConfig, read_balancer

COLUMNS = ("compromise", "short", "worst", "spread", "regression", "rows")
SETTINGS = {
    "5 tasks, 600 steps of 8 rows, 3 epochs": {},
    "150 steps of 4 rows": {"steps": 150, "rows_per_step": 4},
    "1,500 steps of 32 rows": {"steps": 1500, "rows_per_step": 32},
    "1 epoch": {"epochs": 1.0},
    "2 tasks": {"tasks": 2},
    "10 tasks": {"tasks": 10},
    "from scratch, 1,000 steps of 4 rows, 10 epochs": {
        "steps": 1000,
        "rows_per_step": 4,
        "epochs": 10.0,
        "scratch": True,
    },
    "from scratch, 300 steps of 4 rows, 2 epochs": {"steps": 300, "rows_per_step": 4, "epochs": 2.0, "scratch": True},
}
VALIDATIONS = 40  # of a run


def methods(steps: int) -> dict[str, BalancerConfig]:
    """The methods. CoBa has two windows that suit it."""
    short = {"warmup_steps": steps // 30, "window": max(4, steps // 15)}
    long = {"warmup_steps": steps // 30, "window": max(4, steps // 6)}
    return {
        "uniform": read_balancer("uniform"),
        "coba, window T/15": CobaOptions(**short),
        "coba, window T/6": CobaOptions(**long),
        "coba, every 10 steps": CobaOptions(update_interval=10),
        "coba released, T/6": CobaOptions(variant="released", **long),
        "famo": read_balancer("famo"),
        "famo released": FamoOptions(variant="released"),
        "famo released, validation": FamoOptions(variant="released", signal="validation"),
        "dwa": read_balancer("dwa"),
        "lbtw": read_balancer("lbtw"),
        "uncertainty": read_balancer("uncertainty"),
        "random": read_balancer("random"),
        "selfpaced": read_balancer("selfpaced"),
        "pace": read_balancer("pace"),
    }


@dataclass(frozen=True)
class World:
    """K tasks drawn from a seed."""

    rate: Float  # progress over the run at equal weights
    drop: Float  # what a task can gain; 0 is flat
    base: Float
    turn: Float  # progress at which over-fitting begins
    rise: Float
    noise: Float  # standard deviation of a step's mean train loss
    hardness: Float  # [K, R] of the validation rows
    transfer: float  # share of progress that all tasks have from each other's weight
    response: float  # progress grows as weight ** response
    steps: int
    rows_per_step: int
    epochs: float
    fast: Float  # what a task loses at the very start
    drift: Float  # [K, R] how much more, or less, than its task a row moves; all 0 but from scratch
    forgetting: float = 0.0  # progress that a task without weight loses, as a share of its rate
    crowding: float = 0.0  # all progress shrinks as (effective number of tasks / K) ** crowding

    @classmethod
    def draw(
        cls,
        seed: int,
        *,
        tasks: int = 5,
        steps: int = 600,
        rows_per_step: int = 8,
        epochs: float = 3.0,
        scratch: bool = False,
    ) -> "World":
        """Rates differ by a factor of up to ten (four from scratch); every second world has a flat task."""
        rng = np.random.default_rng(seed)
        if scratch:
            return cls(
                rate=2.5 * np.exp(rng.uniform(np.log(0.6), np.log(2.5), tasks)),
                drop=rng.uniform(0.8, 2.0, tasks),
                base=rng.uniform(1.0, 5.0, tasks),
                turn=rng.uniform(1.5, 5.0, tasks),
                rise=rng.uniform(0.02, 0.2, tasks),
                noise=rng.uniform(0.15, 0.4, tasks),
                hardness=0.5 * rng.normal(0, 1, (tasks, 12)),
                transfer=rng.uniform(0.2, 0.5),
                response=rng.uniform(0.5, 0.9),
                steps=steps,
                rows_per_step=rows_per_step,
                epochs=epochs,
                fast=rng.uniform(2.0, 6.0, tasks),
                drift=rng.normal(0, 0.35, (tasks, 12)),
                forgetting=0.5,
                crowding=0.3,
            )
        drop = rng.uniform(0.2, 0.8, tasks)
        if rng.random() < 0.5:
            drop[rng.integers(tasks)] = 0.0
        return cls(
            rate=3.0 * np.exp(rng.uniform(np.log(0.6), np.log(6.0), tasks)),
            drop=drop,
            base=rng.uniform(0.8, 1.5, tasks),
            turn=rng.uniform(2.0, 4.0, tasks),
            rise=np.where(drop > 0, rng.uniform(0.005, 0.05, tasks), 0.0),
            noise=rng.uniform(0.06, 0.2, tasks),
            hardness=rng.normal(0, 1, (tasks, 8)) * rng.uniform(0.1, 0.4, (tasks, 1)),
            transfer=rng.uniform(0, 0.15),
            response=rng.uniform(0.6, 1.0),
            steps=steps,
            rows_per_step=rows_per_step,
            epochs=epochs,
            fast=np.zeros(tasks),
            drift=np.zeros((tasks, 8)),
        )

    def moving(self, progress: Float) -> Float:
        """What falls slowly and rises again at this progress."""
        rising = self.rise * np.maximum(progress - self.turn, 0.0) ** (1.3 if self.forgetting else 1.5)
        if self.forgetting:
            return self.drop / (1 + progress) + rising
        return self.drop * (0.5 * np.exp(-2.5 * progress) + 0.5 * np.exp(-0.8 * progress)) + rising

    def loss(self, progress: Float) -> Float:
        """Held-out losses at this progress."""
        return self.base + self.fast * np.exp(-12 * progress) + self.moving(progress)

    def advance(self, progress: Float, weights: Float, step: int) -> Float:
        """Progress after a step with these weights, under a learning rate with warm-up and cosine."""
        warmup = 0.05 * self.steps
        cosine = 0.1 + 0.45 * (1 + np.cos(np.pi * (step - warmup) / (self.steps - warmup)))
        pull = (len(weights) * weights) ** self.response
        pull = (1 - self.transfer) * pull + self.transfer * pull.mean()
        pull *= (1 / (len(weights) * (weights**2).sum())) ** self.crowding
        pull -= self.forgetting * (1 - np.minimum(1.0, len(weights) * weights))
        if self.forgetting:
            cosine = 1.0  # a constant learning rate
        return np.maximum(
            0.0, progress + 1.6 * self.rate / self.steps * pull * (step / warmup if step < warmup else cosine)
        )


def simulate(world: World, config: BalancerConfig, seed: int) -> tuple[Float, float]:
    """Held-out losses [steps + 1, K], and validation rows measured over rows trained."""
    rng, tasks = np.random.default_rng(seed + 10_000), len(world.rate)
    epoch = int(world.steps / world.epochs)
    facts = RunFacts(
        np.ones(tasks),
        seed,
        world.steps,
        world.rows_per_step,
        np.full(tasks, epoch),
        np.full(tasks, world.hardness.shape[1]),
    )
    balancer: TaskBalancer = build_balancer(config, facts, tuple(map(str, range(tasks))))
    weights, progress, measured = np.full(tasks, 1 / tasks), np.zeros(tasks), 0
    curves, summed = [world.loss(progress)], TaskLosses.zeros(tasks)
    tokens, samples = np.full(tasks, 1000), np.full(tasks, 4)

    def validate(step: int) -> None:
        jitter = (0.005 + 0.1 * world.crowding) * rng.standard_normal(tasks)
        balancer.evaluated(step, TaskLosses((curves[-1] + jitter) * 10 * tokens, 10 * tokens, 10 * samples))

    validate(0)
    for step in range(1, world.steps + 1):
        optimism = 0.06 * progress * max(step / epoch - 1, 0.0) ** 0.7
        seen = world.loss(progress) - optimism + world.noise * rng.standard_normal(tasks)
        summed = summed + TaskLosses(np.maximum(seen, 0.05) * tokens, tokens, samples)
        progress = world.advance(progress, weights, step)
        if balancer.due(step):
            rows = balancer.validation_rows(step)
            found = TaskLosses.zeros(tasks)
            for row in rows:
                here = np.arange(tasks) == row.task
                own = world.hardness[:, row.row] + world.drift[:, row.row] * world.moving(progress)
                loss = world.loss(progress) + own + (0.02 + world.crowding * 0.15) * rng.standard_normal()
                found = found + TaskLosses(
                    np.where(here, 500 * loss, 0.0), np.where(here, 500, 0), np.where(here, 1, 0)
                )
            measured += len(rows)
            weights = balancer.observe(step, summed, found if rows else None).values
            summed = TaskLosses.zeros(tasks)
        curves.append(world.loss(progress))
        if step % max(1, world.steps // VALIDATIONS) == 0:
            validate(step)
    return np.array(curves), measured / (world.steps * world.rows_per_step)


def score(world: World, curves: Float, rows: float) -> dict[str, float]:
    """The columns of the table, over the tasks that can learn."""
    learns = world.drop > 0
    curves = curves[:, learns]
    reachable = world.loss(np.linspace(0, 40, 4001)[:, None] * np.ones(len(learns)))[:, learns].min(axis=0)
    gain = curves[0] - reachable
    kept, best = curves[curves.mean(axis=1).argmin()], curves.min(axis=0)
    short = (kept - reachable) / gain
    return {
        "compromise": float(((kept - best) / gain).mean()),
        "short": float(short.mean()),
        "worst": float(short.max()),
        "spread": float(np.ptp(curves.argmin(axis=0)) / world.steps),
        "regression": float(((curves[-1] - best) / gain).mean()),
        "rows": rows,
    }


def table(draw: Callable[[int], World], seeds: int) -> str:
    """A row a method, in Markdown."""
    lines = [f"| method | {' | '.join(COLUMNS)} |", f"| --- |{' ---: |' * len(COLUMNS)}"]
    worlds = [draw(seed) for seed in range(seeds)]
    for name, config in methods(worlds[0].steps).items():
        scores = [score(world, *simulate(world, config, seed)) for seed, world in enumerate(worlds)]
        cells = [f"{100 * np.mean([found[column] for found in scores]):.1f}%" for column in COLUMNS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=24, help="worlds a setting")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="only the first so many settings")
    options = parser.parse_args()
    for title, fields in list(SETTINGS.items())[: options.settings]:
        print(f"\n{title}:\n\n{table(lambda seed, fields=fields: World.draw(seed, **fields), options.seeds)}")


if __name__ == "__main__":
    main()
