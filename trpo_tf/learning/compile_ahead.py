"""Compile a run's functions in another thread, while the run is evaluated and first sampled."""

import contextlib
from collections.abc import Iterator

import numpy as np

from trpo_tf.config.settings import Config
from trpo_tf.learning.iteration import objective, update_and_fit
from trpo_tf.learning.learner import Learner
from trpo_tf.learning.training_state import TrainingState
from trpo_tf.sampling.actor import ActingGraph
from trpo_tf.sampling.batch import Batch, Episodes
from trpo_tf.sampling.sampler import Sampled
from trpo_tf.serving.runtime.observations import structured
from trpo_tf.support.background import in_background
from trpo_tf.support.phase_timer import PhaseClock


@contextlib.contextmanager
def compiled_ahead(config: Config, learner: Learner, state: TrainingState, graph: ActingGraph) -> Iterator[None]:
    """Compile what an iteration calls, in a thread of `in_background`.

    XLA compiles for seconds, on one core, and lets Python run meanwhile. An iteration that begins before the thread
    has ended waits for what it calls. An error is not raised here: the iteration's own call raises it again.

    Functions that XLA does not compile are left to the first iteration. Tracing them is work for Python, of which only
    one thread can run. The vine's functions are left, too.
    """
    if not learner.xla or config.sampler_is_vine:
        yield
        return
    with in_background(compile_functions, config, learner, state, graph):
        yield


def compile_functions(config: Config, learner: Learner, state: TrainingState, graph: ActingGraph) -> None:
    """Call what an iteration of single paths calls, on a batch of zeros, and discard the results."""
    sampled = Sampled(_zeros(config, graph), Episodes([], [], []), None)
    with np.errstate(all="ignore"):
        update_and_fit(config, learner, state, objective(config, learner, state, sampled), PhaseClock())


def _zeros(config: Config, graph: ActingGraph) -> Batch:
    """Return a batch [T, N] as the sampler makes it."""
    shape = length, num_envs = config.rollout_length, config.sampling.num_envs
    parts = graph.seen or graph.observation
    return Batch(
        observation=structured(
            {part.name: np.zeros((length + 1, num_envs, *part.shape), part.dtype) for part in parts}
        ),
        sample=np.zeros((*shape, *graph.sample.shape), graph.sample.dtype),
        reward=np.zeros(shape),
        terminated=np.zeros(shape, bool),
        truncated=np.zeros(shape, bool),
        weight=np.ones(shape),
    )
