"""Run shards in workers. A worker that takes another's place repeats the segments since the environments were made.

Its shards then have the same state, if the environments are determined by their seeds and actions.
"""

import pickle

from trpo_tf.sampling.engines.pool import WorkerPool
from trpo_tf.sampling.engines.worker import Call
from trpo_tf.sampling.shard import Segment, ShardPlan, Task
from trpo_tf.support.phase_timer import PhaseClock


class WorkerShards:
    """Shards in the workers of a pool, whose parts they are."""

    def __init__(self, plan: ShardPlan, pool: WorkerPool) -> None:
        """Keep the arguments; `restart` reports what the workers can't import or make. `close` closes the pool."""
        self._plan, self._pool = pickle.dumps(plan), pool

    def restart(self, seed: int, longest_first: int, progress: float) -> None:
        """Make new environments from `seed`; a new worker need not repeat what was sampled before."""
        self._pool.forget(1)
        self._pool.call(Call("restart", (self._plan, seed, longest_first, progress)))

    def collect(self, task: Task, clock: PhaseClock) -> list[Segment]:
        """Sample the next segment of each shard. `clock` counts the slowest worker's time for physics and acting."""
        answers = self._pool.call(Call("collect", (task,)))
        slowest = max(answers, key=lambda answer: answer.physics + answer.acting)
        clock.share({"physics": slowest.physics, "acting": slowest.acting})
        return [segment for answer in answers for segment in answer.results]

    def close(self) -> None:
        """Close the environments, and end the workers."""
        self._pool.close()
