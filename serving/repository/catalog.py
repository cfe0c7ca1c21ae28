"""What is served: loaded policies by name and version. A catalog never changes; a reload makes another one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from trpo_tf.serving.runtime.policy import Policy


@dataclass(frozen=True)
class Episode:
    """A video of the policy at work: its file's name in the bundle, and its bytes."""

    file: str
    content: bytes


@dataclass(frozen=True)
class Model:
    """One loaded version of a policy.

    Attributes:
        name: what it is served as.
        version: what tells it from the others of its name.
        policy: what acts.
        episode: what it looks like, if its bundle shows that.
    """

    name: str
    version: str
    policy: Policy
    episode: Episode | None = None


@dataclass(frozen=True)
class Release:
    """The versions of one name that are loaded, oldest first, and how requests that name none are shared among them.

    Attributes:
        versions: at least one; keys are version names.
        choose: the version that answers the next request which names none; called once a request.
    """

    versions: Mapping[str, Model]
    choose: Callable[[], Model]


@dataclass(frozen=True)
class Entry:
    """One version that there is to serve, loaded or not.

    Attributes:
        version: empty if only the bundle knows, and it can't be read.
        is_loaded: whether requests for it are answered.
        reason: why what its folder holds isn't what answers; empty if it is.
    """

    name: str
    version: str
    is_loaded: bool
    reason: str = ""


@dataclass(frozen=True)
class Catalog:
    """Releases by model name. A request is answered from the one catalog that was current when it came.

    Attributes:
        entries: every version that the repository holds, newest first.
        absent: models that ought to be served and have no version loaded.
        is_strict: whether these keep the server from being ready.
    """

    releases: Mapping[str, Release] = field(default_factory=lambda: MappingProxyType({}))
    entries: tuple[Entry, ...] = ()
    absent: frozenset[str] = frozenset()
    is_strict: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether a model can act; if it is strict, every model."""
        return bool(self.releases) and not (self.is_strict and self.absent)

    def find(self, name: str, version: str | None = None) -> Model | None:
        """The model that answers a request for `name`, at `version` or at any; None if there is none."""
        release = self.releases.get(name)
        if release is None:
            return None
        return release.choose() if version is None else release.versions.get(version)
