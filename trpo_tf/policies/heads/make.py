"""The table of heads, and the choice of one for an action space."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from trpo_tf.config.settings import PolicyConfig
from trpo_tf.errors import UserError
from trpo_tf.policies.heads.discrete import BernoulliHead, CategoricalHead, MultiCategoricalHead
from trpo_tf.policies.heads.gaussian import GaussianHead
from trpo_tf.policies.heads.head import Head
from trpo_tf.serving import ArraySpec
from trpo_tf.serving.support.entry_points import find_value

ENTRY_POINTS = "trpo_tf.heads"
"""The group in which an installed package names a `HeadKind` of its own."""


class HeadKind(NamedTuple):
    """A kind of head.

    Attributes:
        fits: whether it can act in the action space of a spec.
        make: returns the head for such a spec. May raise `UserError` for a setting that it does not have.
        maskable: whether its heads are `MaskableHead`s, which take a mask of legal options.
    """

    fits: Callable[[ArraySpec], bool]
    make: Callable[[ArraySpec, PolicyConfig], Head]
    maskable: bool = False


def is_continuous(spec: ArraySpec) -> bool:
    """Return whether actions are floats."""
    return np.dtype(spec.dtype).kind == "f"


def _is_one_choice(spec: ArraySpec) -> bool:
    return not is_continuous(spec) and spec.shape == ()


def _is_bits(spec: ArraySpec) -> bool:
    low, high = spec.bounds()
    return _is_choices(spec) and bool((low == 0).all() and (high == 1).all())


def _is_choices(spec: ArraySpec) -> bool:
    return not is_continuous(spec) and spec.shape != ()


def _gaussian(spec: ArraySpec, settings: PolicyConfig) -> Head:
    return GaussianHead(
        spec,
        initial_log_std=settings.initial_log_std,
        unit_std=settings.unit_std,
        state_dependent_std=settings.state_dependent_std,
        squash=settings.squash,
        censored=settings.censored,
    )


HEADS = {
    "gaussian": HeadKind(is_continuous, _gaussian),
    "categorical": HeadKind(_is_one_choice, lambda spec, _: CategoricalHead(spec), maskable=True),
    "bernoulli": HeadKind(_is_bits, lambda spec, _: BernoulliHead(spec)),
    "multi-categorical": HeadKind(_is_choices, lambda spec, _: MultiCategoricalHead(spec), maskable=True),
}


def make_head(spec: ArraySpec, settings: PolicyConfig | None = None, *, masked: bool = False) -> Head:
    """Return the head for an action spec, by default the first of the table that fits.

    A `masked` head takes a mask of legal options, which only discrete actions have. Raises `UserError` if
    `settings.head` is unknown, does not fit the spec, or takes no mask and should.
    """
    settings = settings or PolicyConfig()
    if settings.head == "auto":
        kind = next(kind for kind in HEADS.values() if kind.fits(spec) and (kind.maskable or not masked))
    else:
        kind = find_value(settings.head, HEADS, ENTRY_POINTS, HeadKind, UserError, "head")
        if not kind.fits(spec):
            raise UserError(f"head {settings.head} does not fit actions of {spec.dtype} {[*spec.shape]}; choose auto")
    if masked and not kind.maskable:
        raise UserError(f"head {settings.head} takes no action mask; choose auto, or action_mask off")
    return kind.make(spec, settings)
