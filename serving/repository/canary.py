"""The canary: the newest version of a model answers a share of the requests, and the version before it the rest."""

from collections.abc import Callable, Sequence
from itertools import count

from trpo_tf.serving.repository.catalog import Model, Release


def make_release(models: Sequence[Model], canary: float = 0.0) -> Release:
    """Return a release of the loaded versions of one model, given oldest first.

    The newest version answers requests that name none. With a canary share it answers only that share of them, and the
    next older version answers the rest. The share is exact, not random: with 0.1 it is every tenth request. Sequences
    are counted apart from requests, by the same share.
    """
    versions = {model.version: model for model in models}
    newest, older = models[-1], models[-2:][0]
    if not canary or len(models) == 1:
        return Release(versions, lambda: newest, lambda: newest)
    return Release(versions, _sharing(newest, older, canary), _sharing(newest, older, canary))


def _sharing(newest: Model, older: Model, canary: float) -> Callable[[], Model]:
    """Return a function that gives the newest version in this share of its calls, and the older one in the others."""
    from fractions import Fraction

    share, requests = Fraction(str(canary)), count()

    def choose() -> Model:
        number = next(requests)  # atomic, for callers in threads
        is_due = (number + 1) * share.numerator // share.denominator > number * share.numerator // share.denominator
        return newest if is_due else older

    return choose
