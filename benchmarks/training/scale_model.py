"""Predict an iteration's time with 10, 100 or 1,000 workers, by a model of measured constants and a simulation.

`python -m benchmarks.training.scale_model` reads results/scale.json, whose row `constants` scale.py has measured, and
writes docs/explanation/scale.md and its plot.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

RESULTS = Path(__file__).parents[1] / "results" / "scale.json"
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "scale.md"
PLOT = PAGE.with_name("scale.svg")
WORKERS = (1, 10, 100, 1000)
STEPS = 1024
"""Steps of a worker in an iteration, so that the batch grows with the workers."""
SIMULATED_ITERATIONS = 200


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of an iteration.

    Attributes:
        learner: the learner's, whatever the number of workers.
        worker: the learner's, for each worker: half to send its message, half to receive its answer.
        receive: the learner's, for each step that it receives and joins.
        update: the learner's, for the update, whatever the batch.
        update_step: the learner's, for the update, for each step of the batch.
        step: a worker's, for a step of one environment, acting included.
        variation: deviation of a segment's time between workers, as a share of its mean.
    """

    learner: float
    worker: float
    receive: float
    update: float
    update_step: float
    step: float
    variation: float

    @classmethod
    def measured(
        cls, constants: dict[str, float], step: float | None = None, variation: float | None = None
    ) -> "Costs":
        """Return the measured costs, or those of another environment."""
        return cls(
            learner=constants["learner_seconds"],
            worker=constants["learner_seconds_per_worker"],
            receive=constants["learner_seconds_per_step"],
            update=constants["update_seconds"],
            update_step=constants["update_seconds_per_step"],
            step=constants["step_seconds"] if step is None else step,
            variation=constants["segment_variation"] if variation is None else variation,
        )

    def one_answer(self, steps: int) -> float:
        """Return the learner's seconds to receive the answer of one worker."""
        return self.worker / 2 + self.receive * steps

    def update_of(self, rows: int) -> float:
        """Return the seconds of an update of so many steps."""
        return self.update + self.update_step * rows


def iteration_seconds(costs: Costs, workers: int, steps: int = STEPS) -> float:
    """Return the model's mean time of an iteration.

    The learner sends one message after the other, and receives one answer after the other. Either the slowest worker is
    the last to be received, or the answers have queued since the first came.
    """
    mean, spread = costs.step * steps, costs.variation * costs.step * steps * largest_normal(workers)
    sent, answer = costs.worker / 2, costs.one_answer(steps)
    slowest = workers * sent + mean + spread + answer
    queued = sent + mean - spread + workers * answer
    return costs.learner + max(slowest, queued) + costs.update_of(workers * steps)


def simulated_seconds(costs: Costs, workers: int, steps: int = STEPS, seed: int = 0) -> float:
    """Return the mean time of simulated iterations, in which each worker's segment takes a random time."""
    rng, answer, totals = np.random.default_rng(seed), costs.one_answer(steps), []
    started = np.arange(1, workers + 1) * costs.worker / 2
    for _ in range(SIMULATED_ITERATIONS):
        sampled = costs.step * steps * np.maximum(rng.normal(1.0, costs.variation, workers), 0.0)
        free = 0.0
        for arrived in np.sort(started + sampled):
            free = max(free, arrived) + answer
        totals.append(free)
    return costs.learner + float(np.mean(totals)) + costs.update_of(workers * steps)


def largest_normal(count: int) -> float:
    """Return about the mean of the largest of `count` standard normal numbers (Blom 1958)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def learner_limit(costs: Costs, steps: int = STEPS) -> float:
    """Return the number of workers above which the learner takes longer than the sampling of a segment."""
    left = costs.step * steps - costs.learner - costs.update
    return max(left, 0.0) / (costs.worker + (costs.receive + costs.update_step) * steps)


def environments(constants: dict[str, float]) -> dict[str, Costs]:
    """Return the costs with HalfCheetah-v5, and with slow simulators, of which the last vary much."""
    return {
        "HalfCheetah-v5": Costs.measured(constants),
        "5 ms a step": Costs.measured(constants, step=0.005),
        "50 ms a step": Costs.measured(constants, step=0.05),
        "50 ms a step, varying by 20%": Costs.measured(constants, step=0.05, variation=0.2),
    }


def page(row: dict[str, float]) -> str:
    """Return the page for the row `constants` of the results."""
    c, kinds = row, environments(row)
    lines = [
        "| environment | workers | iteration, model | iteration, simulated | steps/s | share of ideal |",
        "|---|---|---|---|---|---|",
    ]
    for name, costs in kinds.items():
        for workers in WORKERS:
            seconds = iteration_seconds(costs, workers)
            lines.append(
                f"| {name} | {workers:,} | {seconds:.3g} s | {simulated_seconds(costs, workers):.3g} s | "
                f"{workers * STEPS / seconds:,.0f} | {costs.step * STEPS / seconds:.2f} |"
            )
    limits = "\n".join(f"| {name} | {math.floor(learner_limit(costs)):,} |" for name, costs in kinds.items())
    return TEMPLATE.format(
        learner=1e3 * c["learner_seconds"],
        worker=1e6 * c["learner_seconds_per_worker"],
        receive=1e6 * c["learner_seconds_per_step"],
        update=1e3 * c["update_seconds"],
        update_step=1e6 * c["update_seconds_per_step"],
        step=1e6 * c["step_seconds"],
        variation=100 * c["segment_variation"],
        load=c["load_before"],
        cores=c["cores"],
        table="\n".join(lines),
        limits=limits,
        steps=STEPS,
    )


TEMPLATE = """\
# How far rollout workers scale

`python -m benchmarks.training.scale_model` writes this page from constants that `python -m benchmarks.training.scale`
measured on a machine with {cores} cores, of load {load} before it. Nothing was measured with more than eight workers:
those figures are a model's, and a simulation's.

## What an iteration is made of

Each worker samples {steps:,} steps, so the batch grows with the workers. The learner is one process. It sends the
workers' messages one after the other, receives their answers one after the other, and then updates the policy.

| part | measured |
|---|---|
| learner, each iteration | {learner:.2f} ms |
| learner, each worker: its message and its answer | {worker:.0f} us |
| learner, each step of an answer, joined to the batch | {receive:.2f} us |
| update, each iteration | {update:.1f} ms |
| update, each step of the batch | {update_step:.1f} us |
| worker, each step of HalfCheetah-v5, acting included | {step:.0f} us |
| deviation of a worker's segment, of its mean | {variation:.1f}% |

The first three are the learner's CPU time with 1 to 8 processes on this machine, fitted by least squares. The network
between machines is not in them. A step of 17 observations and 6 actions is about 180 bytes, so 10 Gbit/s carry seven
million a second.

W workers take n steps each, of s seconds, with deviation v. The slowest takes about n s (1 + v m(W)). Here m(W) is
the mean of the largest of W standard normal numbers: 1.5 for 10, 2.5 for 100, 3.2 for 1,000 (Blom's approximation).
Sampling ends when its answer is received, or when the queue of earlier answers is worked off, whichever is later.
Then the update follows. The simulation draws each worker's time, and the learner receives the answers as they arrive.

## What follows

{table}

The share of ideal is 1 if an iteration takes only what a worker samples.

![Steps a second over workers: linear at first, then level where the learner takes all the time](scale.svg)

## Where the learner is the limit

Above this number of workers the learner takes longer than the sampling:

| environment | workers |
|---|---|
{limits}

More workers then only make the batch larger. `--fisher-fraction` and `--critic-epochs` make the update cheaper. Longer
segments do not help, since the update grows with the steps.
"""


def plot(constants: dict[str, float]) -> None:
    """Write the plot: steps a second over workers, the model as lines and the simulation as points."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "scale"
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    counts = np.unique(np.geomspace(1, 1000, 40).astype(int))
    for index, (name, costs) in enumerate(environments(constants).items()):
        rates = [count * STEPS / iteration_seconds(costs, int(count)) for count in counts]
        axes.loglog(counts, rates, color=f"C{index}", label=name)
        points = [workers * STEPS / simulated_seconds(costs, workers) for workers in WORKERS]
        axes.loglog(WORKERS, points, "o", color=f"C{index}")
        axes.axvline(max(learner_limit(costs), 1.0), color=f"C{index}", linestyle=":", linewidth=1)
    axes.set_xlabel("workers (dotted: the learner takes longer than the sampling)")
    axes.set_ylabel("steps per second")
    axes.legend()
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    """Write the page and the plot."""
    constants = json.loads(RESULTS.read_text())["constants"]
    PAGE.write_text(page(constants))
    plot(constants)


if __name__ == "__main__":
    main()
