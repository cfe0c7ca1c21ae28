"""Choose where jobs run: in processes on this machine, or as tasks of a Ray cluster."""

import contextlib
from collections.abc import Iterator

from trpo_tf.benchmark.pool import Process, Start


@contextlib.contextmanager
def starting(ray: str | None, workers: int) -> Iterator[Start]:
    """Provide the function that starts a job, on this machine or on the Ray cluster at an address.

    Raises `UserError` if there is no cluster there.
    """
    if ray is None:
        yield Process
        return
    from trpo_tf.benchmark.ray_pool import RayPool  # only now: most benchmarks need no Ray

    with RayPool(ray, workers) as pool:
        yield pool.start
