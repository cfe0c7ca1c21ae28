"""What changes over a run, as functions of the steps done."""

import dataclasses
import math

import numpy as np

from trpo_tf.config.settings import Config, SamplingConfig
from trpo_tf.learning.training_state import TrainingState
from trpo_tf.updates.registry import EntropyTerm

_ENTROPY_OF_STANDARD_NORMAL = 0.5 * math.log(2 * math.pi * math.e)


def annealing(config: Config, state: TrainingState) -> float:
    """What is left of the run, from 1 to 0, if it is annealed; otherwise 1."""
    return 1.0 - state.steps / config.total_steps if config.anneal else 1.0


def present_discount(config: Config, state: TrainingState) -> float:
    """The discount factor at this point of the run: between the first and the final horizon on a geometric scale."""
    first, final = config.sampling.discount, config.sampling.final_discount
    if final == 0:
        return first
    done = state.steps / config.total_steps
    return float(1 - (1 - first) ** (1 - done) * (1 - final) ** done)


def present_sampling(config: Config, state: TrainingState) -> SamplingConfig:
    """The settings of sampling, with the discount factor at this point of the run."""
    return dataclasses.replace(config.sampling, discount=present_discount(config, state))


def radius_or_coefficient(config: Config, state: TrainingState) -> np.float32:
    """What this update goes by: the annealed radius, or the radius or KL coefficient as the algorithm adapted it."""
    return np.float32(config.trust_region.max_kl * annealing(config, state)) if config.anneal else state.adapted


def entropy_term(config: Config, state: TrainingState, actions: int) -> EntropyTerm:
    """The entropy's part in the objective, for a policy of so many action dimensions.

    Its target is the entropy at a standard deviation that goes to `final_std` by equal factors.
    """
    weight = np.float32(config.trust_region.entropy_coefficient * annealing(config, state))
    if config.policy.final_std == 0:
        return EntropyTerm(weight, np.float32(0.0))
    done = state.steps / config.total_steps
    log_std = (1 - done) * config.policy.initial_log_std + done * math.log(config.policy.final_std)
    return EntropyTerm(weight, np.float32(actions * (log_std + _ENTROPY_OF_STANDARD_NORMAL)))
