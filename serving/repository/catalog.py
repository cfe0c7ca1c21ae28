"""Catalog of loaded policies by name and version. It is immutable; a reload makes another one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from trpo_tf.serving.runtime.policy import Policy


class Episode(NamedTuple):
    """Video of an episode with the policy: the file's name in the bundle, and its content."""

    file: str
    content: bytes


@dataclass(frozen=True)
class Model:
    """One loaded version of a policy.

    Attributes:
        name: model name in requests.
        version: version name in requests.
        policy: the loaded policy.
        episode: video of an episode, if the bundle has one.
    """

    name: str
    version: str
    policy: Policy
    episode: Episode | None = None


class Release(NamedTuple):
    """Loaded versions of one model, oldest first, and the choice among them for requests that name no version.

    Attributes:
        versions: models by version name, at least one.
        choose: returns the version for the next request that names none; called once per request.
        choose_for_sequence: returns the version for the next sequence that begins without one; called once for each.
    """

    versions: Mapping[str, Model]
    choose: Callable[[], Model]
    choose_for_sequence: Callable[[], Model]


class Entry(NamedTuple):
    """One version in the repository, loaded or not.

    Attributes:
        version: empty if only the bundle's manifest states it, and the bundle could not be loaded.
        is_loaded: whether requests for it are answered.
        reason: why the current content of its folder is not loaded; empty if it is.
    """

    name: str
    version: str
    is_loaded: bool
    reason: str = ""


@dataclass(frozen=True)
class Catalog:
    """Releases by model name. A request uses the catalog that was current when it arrived.

    Attributes:
        entries: every version in the repository, newest first.
        absent: names of models that should be served, but have no loaded version.
        is_strict: whether absent models keep the server from being ready.
    """

    releases: Mapping[str, Release] = field(default_factory=lambda: MappingProxyType({}))
    entries: tuple[Entry, ...] = ()
    absent: frozenset[str] = frozenset()
    is_strict: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether at least one model is loaded and, in a strict catalog, none is absent."""
        return bool(self.releases) and not (self.is_strict and self.absent)

    def find(self, name: str, version: str | None = None) -> Model | None:
        """Return the model for a request, which may name a version; None if there is no such model."""
        release = self.releases.get(name)
        if release is None:
            return None
        return release.choose() if version is None else release.versions.get(version)
