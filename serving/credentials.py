"""Keys and certificates in force: read before the workers are forked, and again while they run."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from serving.errors import ServeError
from serving.keys import KeyRing
from serving.options import ServeOptions
from serving.reloading import Followed

if TYPE_CHECKING:
    from serving.tls import Tls


class Credentials:
    """What the options name.

    Attributes:
        keys: bearer keys, or None if none are asked for.
        tls: certificates, or None without TLS.
    """

    def __init__(self, options: ServeOptions) -> None:
        """Read all. Raises `ServeError`."""
        self.keys = KeyRing(options.keys) if options.keys else None
        self.tls = _load_tls(options)
        self._followed = []
        if self.keys is not None:
            self._followed.append(Followed("keys", (str(options.keys),), self.keys.reload))
        if self.tls is not None:
            files = tuple(str(file) for file in (options.tls_cert, options.tls_key, options.tls_client_ca) if file)
            self._followed.append(Followed("certificates", files, self.tls.reload))

    def followed(self) -> Sequence[Followed]:
        """The files, and how each is read again."""
        return self._followed

    def refresh(self) -> None:
        """Read all again, once a worker has done so; what can't be used any more stays as it was."""
        for followed in self._followed:
            with suppress(ServeError):
                followed.reload()


def _load_tls(options: ServeOptions) -> "Tls | None":
    """The certificates, without the import of what reads them if there are none."""
    if not options.tls_cert:
        return None
    from serving.tls import load_tls

    return load_tls(options)
