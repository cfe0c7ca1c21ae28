"""Choose the engine of a run's workers: processes on this machine, or Ray's actors."""

from trpo_tf.sampling.engines.engine import Engine
from trpo_tf.sampling.engines.process_engine import ProcessEngine
from trpo_tf.sampling.engines.ray_engine import RayEngine
from trpo_tf.sampling.workers import Workers


def engine_for(workers: Workers) -> Engine:
    """Return what starts the workers. Raises `UserError` if there is no Ray cluster at their address."""
    return ProcessEngine() if workers.ray is None else RayEngine(workers.ray, workers.count)
