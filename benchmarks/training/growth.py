"""Measure how an iteration's cost grows with batch size, networks' width and number of environments.

`python -m benchmarks.training.growth` prints a table and writes results/growth.json. One dimension varies at a time,
each point is measured in a process of its own, and update and critic one after the other, though training runs them
side by side.
"""

import argparse
import functools
import json
import sys
import timeit
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.processes import ask

if TYPE_CHECKING:
    from trpo_tf.config.settings import Config

RESULTS = Path(__file__).parents[1] / "results" / "growth.json"
MEASURED = 5


class Point(NamedTuple):
    """Sizes of an iteration; `width` is that of both hidden layers, in policy and critic."""

    env_id: str
    batch_size: int
    width: int
    num_envs: int


CHEETAH = Point("HalfCheetah-v5", batch_size=4096, width=64, num_envs=8)
CARTPOLE = CHEETAH._replace(env_id="CartPole-v1")
DIMENSIONS = {
    "batch_size": (CHEETAH, (1024, 4096, 16_384, 65_536)),
    "width": (CHEETAH, (32, 64, 256, 1024)),
    "num_envs": (CARTPOLE, (1, 8, 64, 256)),
}
COSTS = ("sampling", "acting", "update", "critic")


def measure(point: Point) -> dict[str, float]:
    """Return median milliseconds of each part once all is compiled, and the number of the policy's parameters."""
    import numpy as np

    from trpo_tf.estimation.targets import estimate
    from trpo_tf.learning.critic_fit import fit_critic
    from trpo_tf.learning.learner import build_learner
    from trpo_tf.learning.schedules import entropy_term, radius_or_coefficient
    from trpo_tf.policies.running_stats import Normalizer
    from trpo_tf.sampling.sampler import Experience
    from trpo_tf.support.phase_timer import PhaseClock
    from trpo_tf.updates.minibatch import minibatches

    config = _config(point)
    learner = build_learner(config)
    state = learner.initial_state(point.num_envs)
    rng, clocks = np.random.default_rng(0), []
    with Experience(config, learner.policy) as experience:
        experience.restart()
        experience.load(state.theta, Normalizer.of(state.observation_moments))

        def sample() -> Any:
            clocks.append(PhaseClock())
            return experience.collect(rng, clocks[-1])

        sampling = median_milliseconds(sample)
        batch, _, _ = sample()
    networks = learner.frozen(state)
    estimates = estimate(config.sampling, networks, batch, state.return_moments, state.carried_returns)
    inner, rows = config.inner, batch.reward.size
    batches = minibatches(rng, rows, inner.policy_batch_size, inner.policy_epochs)
    return {
        "sampling": sampling,
        "acting": 1000 * median(clock.seconds["acting"] for clock in clocks[1:]),
        "update": median_milliseconds(
            lambda: learner.update(
                state.theta,
                estimates.rows,
                radius_or_coefficient(config, state),
                batches,
                entropy_term(config, state, learner.policy.head),
            ).theta.numpy()
        ),
        "critic": median_milliseconds(lambda: fit_critic(config, learner, state, estimates.critic_rows)),
        "parameters": len(state.theta),
    }


def _config(point: Point) -> "Config":
    from trpo_tf.config.settings import Config, CriticConfig, PolicyConfig, SamplingConfig, TrustRegionConfig
    from trpo_tf.envs.vector.backends import with_env_backend

    layers = (point.width, point.width)
    return with_env_backend(
        Config(
            point.env_id,
            total_steps=1_000_000,
            sampling=SamplingConfig(num_envs=point.num_envs, batch_size=point.batch_size),
            policy=PolicyConfig(hidden_sizes=layers),
            critic=CriticConfig(hidden_sizes=layers),
            # Always as many products.
            trust_region=TrustRegionConfig(cg_tolerance=0.0),
        )
    )


def median_milliseconds(call: Callable[[], Any]) -> float:
    """Return the median time of several calls, after a first that is not measured."""
    call()
    return 1000 * median(timeit.repeat(call, number=1, repeat=MEASURED))


def table(results: list[dict[str, Any]]) -> str:
    """Format as Markdown: milliseconds, and in brackets the ratio to the first point of the dimension."""
    lines = ["| | work | sampling | of it acting | update | critic |", "|---|---|---|---|---|---|"]
    for result in results:
        base = next(r for r in results if r["dimension"] == result["dimension"] and r["is_base"])
        work, base_work = (r["batch_size"] * r["parameters"] for r in (result, base))
        costs = " | ".join(f"{result[cost]:,.0f} ({_ratio(result[cost], base[cost])})" for cost in COSTS)
        name = f"{result['env_id']}, {result['dimension']} {result[result['dimension']]:,}"
        lines.append(f"| {name} | {_ratio(work, base_work)} | {costs} |")
    return "\n".join(lines)


def _ratio(value: float, base: float) -> str:
    return f"{float(f'{value / base:.2g}'):g}"


@functools.cache
def _answer(point: Point) -> dict[str, float]:
    answer: dict[str, float] = ask([sys.executable, "-m", "benchmarks.training.growth", "--point", json.dumps(point)])
    return answer


def main() -> None:
    """Measure all points."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(Point(*json.loads(arguments.point)))))
        return
    results = []
    for dimension, (base, values) in DIMENSIONS.items():
        for value in values:
            point = base._replace(**{dimension: value})
            print(f"{dimension} {value:,}", file=sys.stderr, flush=True)
            results.append({"dimension": dimension, "is_base": point == base, **point._asdict(), **_answer(point)})
    RESULTS.write_text(f"{json.dumps(results, indent=1)}\n")
    print(table(results))


if __name__ == "__main__":
    main()
