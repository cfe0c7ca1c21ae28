"""Keys and certificates in force: read before the workers are forked, and again while they run."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.listening.credential_reloading import Followed
from trpo_tf.serving.options import ServeOptions

if TYPE_CHECKING:
    from trpo_tf.serving.keys import KeyRing
    from trpo_tf.serving.listening.tls import Tls


class Credentials:
    """Bearer keys and certificates that the options name.

    Attributes:
        keys: bearer keys, or None if requests need none.
        tls: certificates, or None without TLS.
    """

    def __init__(self, options: ServeOptions) -> None:
        """Read the files. Raises `ServeError`."""
        self.keys, self.tls = _load_keys(options), _load_tls(options)
        self._followed = []
        if self.keys is not None:
            self._followed.append(Followed("keys", (str(options.keys),), self.keys.reload))
        if self.tls is not None:
            files = tuple(str(file) for file in (options.tls_cert, options.tls_key, options.tls_client_ca) if file)
            self._followed.append(Followed("certificates", files, self.tls.reload))

    def followed(self) -> Sequence[Followed]:
        """Return the files to follow, and the functions that read them again."""
        return self._followed

    def refresh(self) -> None:
        """Read all files again, after a worker has done so. Content that can't be used is ignored."""
        for followed in self._followed:
            with suppress(ServeError):
                followed.reload()


# Their modules are imported only if needed: they take 4 MB, also in a parent of workers that uses neither.


def _load_keys(options: ServeOptions) -> "KeyRing | None":
    if not options.keys:
        return None
    from trpo_tf.serving.keys import KeyRing

    return KeyRing(options.keys)


def _load_tls(options: ServeOptions) -> "Tls | None":
    if not options.tls_cert:
        return None
    from trpo_tf.serving.listening.tls import load_tls

    return load_tls(options)
