"""Settings that change over a run, as functions of the steps done."""

import dataclasses
import math

import numpy as np

from trpo_tf.config.algorithms import find_algorithm
from trpo_tf.config.settings import Config, SamplingConfig
from trpo_tf.learning.training_state import TrainingState
from trpo_tf.policies.heads.head import Head
from trpo_tf.updates.compiled_update import EntropyTerm

_ENTROPY_OF_STANDARD_NORMAL = 0.5 * math.log(2 * math.pi * math.e)


def progress(config: Config, state: TrainingState) -> float:
    """Return the share of the run that is done, from 0 to 1."""
    return state.steps / config.total_steps


def annealing(config: Config, state: TrainingState) -> float:
    """Return the share of the run that is left, from 1 to 0, if `anneal` is set; otherwise 1."""
    return 1.0 - progress(config, state) if config.anneal else 1.0


def present_discount(config: Config, state: TrainingState) -> float:
    """Return the discount factor at this point of the run.

    The horizon 1 / (1 - discount) is interpolated geometrically between the first and the final one.
    """
    first, final = config.sampling.discount, config.sampling.final_discount
    if final == 0:
        return first
    done = progress(config, state)
    return float(1 - (1 - first) ** (1 - done) * (1 - final) ** done)


def present_sampling(config: Config, state: TrainingState) -> SamplingConfig:
    """Return the sampling settings with the discount factor at this point of the run."""
    return dataclasses.replace(config.sampling, discount=present_discount(config, state))


def radius_or_coefficient(config: Config, state: TrainingState) -> np.float32:
    """Return the radius or KL coefficient of this update: `max_kl`, annealed or not, or what the algorithm adapted."""
    if not find_algorithm(config.algo).can_anneal:
        return state.adapted
    return np.float32(config.trust_region.max_kl * annealing(config, state))


def entropy_term(config: Config, state: TrainingState, head: Head) -> EntropyTerm:
    """Return the weight and target of the objective's entropy term.

    With `final_std` the target is the entropy at a standard deviation that is interpolated geometrically to it.
    """
    weight = np.float32(config.trust_region.entropy_coefficient * annealing(config, state))
    if config.policy.final_std == 0:
        return EntropyTerm(weight, np.float32(0.0))
    done = progress(config, state)
    (initial_log_std,) = head.initial_extra()
    log_std = (1 - done) * initial_log_std + done * math.log(config.policy.final_std)
    return EntropyTerm(weight, np.float32((log_std + _ENTROPY_OF_STANDARD_NORMAL).sum()))
