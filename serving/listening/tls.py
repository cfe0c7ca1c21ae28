"""Certificate, key and client authorities: read once for HTTP and gRPC, checked, and replaced while the server runs."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.listening.sockets import reason
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.support.regular_file import read_regular

_EXPIRED = 10
"""OpenSSL's code for an expired certificate, X509_V_ERR_CERT_HAS_EXPIRED."""


class TlsFiles(NamedTuple):
    """Content of the files, in PEM. `authority` has the CAs of clients' certificates, or None if clients need none."""

    certificate: bytes
    key: bytes
    authority: bytes | None


class Tls:
    """Current certificates, which HTTP and gRPC read at each new connection.

    Attributes:
        files: content of the files that they were read from.
        context: TLS context for HTTP.
    """

    def __init__(self, options: ServeOptions) -> None:
        """Read the certificates. Raises `ServeError` if they can't be used."""
        self._options = options
        self.files = read_files(options)
        self.context = make_context(self.files, options)

    def reload(self) -> bool:
        """Read the files again, and return whether they have changed.

        Raises `ServeError` if they can't be used any more; the certificates read before then stay in use.
        """
        files = read_files(self._options)
        if files == self.files:
            return False
        self.context = make_context(files, self._options)
        self.files = files
        return True


def load_tls(options: ServeOptions) -> Tls | None:
    """Load the certificates that the options name, or return None without TLS. Raises `ServeError`."""
    return Tls(options) if options.tls_cert else None


def read_files(options: ServeOptions) -> TlsFiles:
    """Read the files that the options name. Raises `ServeError`."""
    certificate, key = (_read(str(path)) for path in (options.tls_cert, options.tls_key))
    return TlsFiles(certificate, key, _read(options.tls_client_ca) if options.tls_client_ca else None)


def make_context(files: TlsFiles, options: ServeOptions) -> ssl.SSLContext:
    """Return a context for TLS 1.2 or later, which requires client certificates if there is an authority for them.

    Raises `ServeError` if a file is not PEM, the key is encrypted or another certificate's, or the certificate expired.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    names = f"{options.tls_cert} and {options.tls_key}"
    with _as_file(files.certificate) as certificate, _as_file(files.key) as key:
        try:
            context.load_cert_chain(certificate, key, _refuse_password)
        except _EncryptedError:
            raise ServeError(
                f"the TLS key {options.tls_key} is encrypted; decrypt it first, with openssl pkey -in KEY -out NEW"
            ) from None
        except OSError as error:
            raise ServeError(f"the TLS certificate or key can't be used, {names}: {_said(error)}") from None
    if files.authority is not None:
        try:
            with _as_file(files.authority) as authority:
                context.load_verify_locations(authority)
        except OSError as error:
            raise ServeError(f"--tls-client-ca {options.tls_client_ca} can't be used: {_said(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
    if _has_expired(files):
        raise ServeError(f"the TLS certificate {options.tls_cert} has expired; give a new one")
    return context


class _EncryptedError(Exception):
    """Raised for a key that needs a pass phrase."""


def _refuse_password() -> str:
    """Raise an error, where OpenSSL would ask for the pass phrase on the terminal."""
    raise _EncryptedError


def _read(path: str) -> bytes:
    try:
        content = read_regular(path)
    except OSError as error:
        raise ServeError(f"can't read the TLS file {path}: {reason(error)}; give a PEM file") from None
    if b"-----BEGIN " not in content:
        raise ServeError(f"the TLS file {path} is not PEM; give a file with -----BEGIN ... in it")
    return content


@contextmanager
def _as_file(content: bytes) -> Iterator[Path]:
    """Provide the content as a file in memory, since Python's ssl takes paths. So the content used is that checked."""
    descriptor = os.memfd_create("pem")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _said(error: OSError) -> str:
    """Return the reason of an error, in OpenSSL's words where it has any."""
    if not isinstance(error, ssl.SSLError):
        return reason(error)
    match error.reason:
        case "KEY_VALUES_MISMATCH":
            return "the key is not this certificate's"
        case "NO_START_LINE" | None:
            return "it is damaged, or holds something else"
        case known:
            return known.lower().replace("_", " ")


def _has_expired(files: TlsFiles) -> bool:
    """Return whether the certificate has expired, by a handshake in memory with a client that trusts it alone."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _as_file(files.certificate) as certificate, _as_file(files.key) as key:
        client.load_verify_locations(certificate)
        server.load_cert_chain(certificate, key, _refuse_password)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = server.wrap_bio(to_server, to_client, server_side=True)
    for side in (asking, answering, asking):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_code == _EXPIRED
    return False
