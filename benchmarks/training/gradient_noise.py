"""Measure how much of a batch's policy gradient is signal, by very many batches of a policy frozen in training.

`python -m benchmarks.training.gradient_noise Walker2d-v5 --seed 100 --steps 250000` trains the preset so far, samples
500 batches of the policy that it has then, and fits critics to the training's batches with memories of several lengths.
The table says how efficient a step x from one batch is, for each critic and trace: g'x / sqrt(x'Fx g'F^-1 g), with g
the gradient of all those batches, by Monte Carlo returns and a critic that has seen them all: 1 for the natural
gradient itself, 0 for a random direction. At equal divergence a step gains in proportion to it. A quarter of an hour.
"""

import argparse
import dataclasses
import sys
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks.training.settings import with_settings
from trpo_tf.benchmark.worker import use_one_thread
from trpo_tf.config.settings import Config, load_preset, preset_for
from trpo_tf.envs.vector.backends import with_env_backend
from trpo_tf.estimation.critic_memory import remembered, with_memory
from trpo_tf.estimation.gae import generalized_advantages, standardized
from trpo_tf.estimation.reward_scaling import scale_rewards
from trpo_tf.estimation.targets import estimate
from trpo_tf.learning.critic_fit import fit_critic
from trpo_tf.learning.iteration import iterate
from trpo_tf.learning.learner import Learner, build_learner
from trpo_tf.learning.schedules import present_sampling
from trpo_tf.learning.training_state import TrainingState
from trpo_tf.policies.running_stats import Normalizer
from trpo_tf.sampling.batch import Batch
from trpo_tf.sampling.sampler import Experience
from trpo_tf.solvers.adam import AdamState
from trpo_tf.solvers.conjugate_gradient import conjugate_gradient
from trpo_tf.support.phase_timer import PhaseClock
from trpo_tf.updates.directions import natural_gradient
from trpo_tf.updates.local_problem import LocalProblem, Rows

MEMORIES, TRACES = (1, 4, 16, 48), (0.5, 0.8, 0.95)
BATCHES, TRIED, WARM = 500, 96, 20
"""Batches of the frozen policy, those that steps are made of, and those before, which bring episodes out of step."""
EPOCHS, WIDE = 6, (128, 128)
"""Of the critic that sees all."""
LITTLE = 1e-3
"""Damping of what is compared with."""


def train_until(config: Config, learner: Learner, steps: int) -> tuple[TrainingState, list[Any]]:
    """Train for `steps` steps; return the state, and (state, batch) of each iteration before."""
    state, seen = learner.initial_state(config.sampling.num_envs), []
    with Experience(config, learner.policy) as experience:
        collect = experience.collect

        def recorded(*arguments: Any) -> Any:
            answer = collect(*arguments)
            seen.append((state, answer[0]))
            return answer

        experience.collect = recorded  # type: ignore[method-assign]
        experience.restart()
        while state.steps < steps:
            state, _ = iterate(config, learner, experience, state)
            if state.steps - state.steps_at_checkpoint >= learner.checkpoint_steps:
                state = state.at_checkpoint()
                experience.restart(state.checkpoint, max(state.recent_lengths, default=0))
    return state, seen


def sample_frozen(config: Config, learner: Learner, state: TrainingState) -> Batch:
    """Sample consecutive batches of the unchanged policy, and concatenate them in time."""
    rng = np.random.default_rng(0)
    with Experience(config, learner.policy) as experience:
        experience.restart(10_000, max(state.recent_lengths, default=0))
        experience.load(state.theta, Normalizer.of(state.observation_moments))
        batches = [experience.collect(rng, PhaseClock())[0] for _ in range(WARM + BATCHES)]
    kept = batches[WARM:]
    parts = [np.concatenate([getattr(batch, name) for batch in kept]) for name in Batch._fields[1:]]
    seen = np.concatenate([*(batch.observation[:-1] for batch in kept), kept[-1].observation[-1:]])
    return Batch(seen, *parts)


class Frozen:
    """Samples of the frozen policy, with their advantages and gradients for any critic and trace."""

    def __init__(self, config: Config, learner: Learner, state: TrainingState, batch: Batch) -> None:
        """Compile the functions of the rows; `batch` is [BATCHES x T, N]."""
        self.config, self.learner, self.state, self.batch = config, learner, state, batch
        self.reward = scale_rewards(batch.reward, state.return_moments)
        flat = batch.observation.reshape(-1, batch.observation.shape[-1])
        self.inputs = np.asarray(learner.encode(Normalizer.of(state.observation_moments), flat))
        policy, settings = learner.policy, config.trust_region

        def problem(rows: Rows) -> LocalProblem:
            return LocalProblem(policy, state.theta, Rows(*rows))

        self.gradient = tf.function(lambda rows: problem(rows).gradient()[1], jit_compile=True)
        self.fisher = tf.function(lambda rows, v: problem(rows).fisher_vector_product(v), jit_compile=True)
        self.step = tf.function(
            lambda rows: natural_gradient(problem(rows), problem(rows).gradient()[1], settings).vector, jit_compile=True
        )
        self.tried = TRIED * config.rollout_length
        self.metric_rows = self.rows(slice(self.tried, self.tried + 2 * config.rollout_length), batch.reward)

    def values(self, critic: Any, theta: Any) -> Any:
        """Return V of each observation: [BATCHES x T + 1, N]."""
        parts = [np.asarray(critic.values(theta, part)) for part in np.array_split(self.inputs, 16)]
        return np.concatenate(parts).reshape(len(self.reward) + 1, -1)

    def advantages(self, value: Any, trace: float) -> Any:
        """Return the advantages: [BATCHES x T, N]."""
        batch, discount = self.batch, self.config.sampling.discount
        return generalized_advantages(self.reward, discount * ~batch.terminated, trace * ~batch.ended, value)

    def rows(self, chosen: slice, advantage: Any) -> Rows:
        """Return the rows of the time steps `chosen`."""
        batch, size = self.batch, self.batch.reward.shape[1]
        inputs = self.inputs.reshape(-1, size, self.inputs.shape[-1])[chosen]
        weight = batch.weight[chosen]
        flat = lambda part: part.reshape(-1, *part.shape[2:]).astype(np.float32)  # noqa: E731
        return Rows(flat(inputs), flat(batch.sample[chosen]), flat(advantage[chosen]), flat(weight))

    def true_gradient(self) -> tuple[Any, float]:
        """Return the gradient g of rows that no step uses, and sqrt(g'F^-1 g).

        There each g is of another half of the rows, so that their noise does not add.
        """
        settings = {"critic.hidden_sizes": WIDE}
        critic = build_learner(with_settings(self.config, settings)).value_function
        theta, rng = critic.initial_theta(), np.random.default_rng(0)
        adam, value = AdamState.zeros(len(theta)), np.zeros((len(self.reward) + 1, self.reward.shape[1]))
        inputs = self.inputs[: self.reward.size]
        for epoch in range(EPOCHS):
            targets = (self.advantages(value, 1.0) + value[:-1]).ravel().astype(np.float32)
            order = rng.permutation(len(inputs))[: len(inputs) // 512 * 512].reshape(-1, 512).astype(np.int32)
            rate = np.float32(1e-3 if epoch < EPOCHS - 2 else 2e-4)
            weight = self.batch.weight.ravel().astype(np.float32)
            theta, adam, _ = critic.fit(theta, adam, inputs, targets, weight, order, rate)
            value = self.values(critic, theta)
        advantage = standardized(self.advantages(value, 1.0), self.batch.weight)
        length = self.config.rollout_length
        starts = range(self.tried, len(self.reward) - length + 1, length)
        gradients = np.array([self.gradient(self.rows(slice(t, t + length), advantage)) for t in starts], np.float64)
        one, other = gradients[::2].mean(axis=0), gradients[1::2].mean(axis=0)

        def product(vector: Any) -> Any:
            return tf.cast(self.fisher(self.metric_rows, tf.cast(vector, tf.float32)), tf.float64) + LITTLE * vector

        natural = conjugate_gradient(product, tf.constant(one), iterations=150, tolerance=1e-6).x.numpy()
        return gradients.mean(axis=0), float(np.sqrt(abs(natural @ other)))

    def efficiency(self, value: Any, trace: float, gradient: Any, norm: float) -> tuple[float, float]:
        """Return the mean efficiency over the batches, and its standard error."""
        advantage, length, found = self.advantages(value, trace), self.config.rollout_length, []
        for t in range(0, self.tried, length):
            chosen = slice(t, t + length)
            rows = self.rows(chosen, advantage)
            rows = rows._replace(advantage=standardized(rows.advantage, rows.weight).astype(np.float32))
            step = self.step(rows)
            curvature = float(tf.tensordot(step, self.fisher(self.metric_rows, step), 1))
            found.append(float(gradient @ step.numpy()) / (np.sqrt(curvature) * norm))
        return float(np.mean(found)), float(np.std(found) / np.sqrt(len(found)))


def critic_with(memory: int, config: Config, seen: list[Any]) -> tuple[Any, Any]:
    """Fit a critic to the training's batches with this memory; return its function and parameters."""
    config = with_settings(config, {"critic.memory": memory})
    learner, n = build_learner(config), config.sampling.num_envs
    own = learner.initial_state(n)
    for state, batch in seen:
        own = dataclasses.replace(state, value_theta=own.value_theta, adam=own.adam, earlier=own.earlier)
        rows = with_memory(own.earlier, batch, memory)
        sampling = present_sampling(config, own)
        estimates = estimate(sampling, learner.frozen(own), batch, own.return_moments, own.carried_returns, rows)
        theta, adam, _ = fit_critic(config, learner, own, estimates.critic_rows)
        own = dataclasses.replace(own, value_theta=theta, adam=adam, earlier=remembered(own.earlier, batch, memory))
    return learner.value_function, own.value_theta


def main() -> None:
    """Train, freeze, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env_id")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--steps", type=int, default=250_000)
    arguments = parser.parse_args()
    use_one_thread()
    config = load_preset(preset_for(arguments.env_id), arguments.env_id)
    settings = {"seed": arguments.seed, "sampling.final_discount": 0.0, "critic.memory": 1}
    config = with_env_backend(with_settings(config, settings))
    learner = build_learner(config)
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    say("training")
    state, seen = train_until(config, learner, arguments.steps)
    say("sampling the frozen policy")
    frozen = Frozen(config, learner, state, sample_frozen(config, learner, state))
    say("the gradient of all of it")
    truth = frozen.true_gradient()
    print(f"| memory | {' | '.join(f'trace {trace}' for trace in TRACES)} |\n|---|{'---|' * len(TRACES)}")
    for memory in MEMORIES:
        value = frozen.values(*critic_with(memory, config, seen))
        found = (frozen.efficiency(value, trace, *truth) for trace in TRACES)
        print(f"| {memory} | {' | '.join(f'{mean:.3f} +- {error:.3f}' for mean, error in found)} |", flush=True)


if __name__ == "__main__":
    main()
