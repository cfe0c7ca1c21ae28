"""How many examples a property of the codecs is tried on."""

import os

from hypothesis import HealthCheck, settings


def examples(count: int) -> settings:
    """Return settings for the same `count` examples each time, or for RANDOM_EXAMPLES new ones if that is set."""
    random = os.environ.get("RANDOM_EXAMPLES")
    return settings(
        max_examples=int(random or count),
        derandomize=not random,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
