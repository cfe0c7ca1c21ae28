"""Signatures of bundles. They prove who made a bundle; its checksums don't, since anyone can write them.

Bundles are signed by OpenSSF's model-signing with an elliptic-curve key pair, without the network. A signature covers
every file of the folder except itself. Needs the extra `signing`.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from trpo_tf.serving.bundle.available_memory import available_bytes
from trpo_tf.serving.bundle.files import SIGNATURE_FILE, copy_regular
from trpo_tf.serving.errors import BundleError, install


def signer(private_key: Path) -> Any:
    """Return a model-signing configuration with a private key. Raises `BundleError` if the key can't be used.

    `private_key` is a PEM file of an elliptic-curve key without a password.
    """
    signing = _model_signing("signing")
    try:
        return signing.Config().use_elliptic_key_signer(private_key=private_key)
    except Exception as error:
        raise BundleError(f"{private_key} can't sign ({_one_line(error)}); give an EC key as PEM") from error


def sign(bundle: Path, private_key: Path) -> None:
    """Write the bundle's signature, and replace an existing one.

    Raises `BundleError` if the key can't sign, or the folder holds anything but plain files and folders.
    """
    from tempfile import TemporaryDirectory

    hashing, signing = _model_signing("hashing"), signer(private_key)
    with TemporaryDirectory(dir=bundle.parent, prefix=f".{bundle.name}-") as scratch:
        signature = Path(scratch) / SIGNATURE_FILE
        try:
            signing.set_hashing_config(_everything(hashing)).sign(bundle, signature)
        except ValueError as error:
            raise BundleError(f"{bundle} can't be signed ({_one_line(error)}); put plain files in it") from error
        with signature.open("rb") as file:
            os.fsync(file.fileno())
        signature.rename(bundle / SIGNATURE_FILE)


@contextmanager
def signed_copy(bundle: Path, public_key: Path) -> Iterator[Path]:
    """Copy a bundle to a private folder, verify the copy's signature, and yield the copy.

    Nobody can change the copy between check and use. Raises `BundleError` for a bundle that is not signed, signed with
    another key, or changed since. It is also raised if the bundle can't be copied to the system's temporary folder.
    """
    from tempfile import TemporaryDirectory

    verifying, hashing = _model_signing("verifying"), _model_signing("hashing")
    if not (bundle / SIGNATURE_FILE).is_file():
        raise BundleError(f"{bundle} is not signed (no {SIGNATURE_FILE}); export it with --sign")
    if not public_key.is_file():
        raise BundleError(f"there is no key {public_key}; give the public key as PEM")
    with ExitStack() as stack:
        try:
            copy = Path(stack.enter_context(TemporaryDirectory())) / bundle.resolve().name
            _copy(bundle, copy)
        except OSError as error:  # shutil.Error is one
            raise BundleError(
                f"{bundle} can't be copied to check it ({_one_line(error)}); let TMPDIR name a writable folder"
            ) from error
        try:
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
            verifier.set_hashing_config(_everything(hashing)).verify(copy, copy / SIGNATURE_FILE)
        except Exception as error:
            raise BundleError(
                f"{bundle}: its signature does not hold for {public_key} ({_one_line(error)}); get the bundle, or the "
                "key, from where it was made"
            ) from error
        yield copy


def _copy(bundle: Path, copy: Path) -> None:
    """Copy a folder of regular files and links. Raises `OSError`, and `BundleError` if there is no room.

    Available memory limits the copy as well as the free disk space: the temporary folder may be a tmpfs.
    """
    sizes = [os.lstat(os.path.join(base, name)).st_size for base, _, names in os.walk(bundle) for name in names]
    room = min(shutil.disk_usage(copy.parent).free, available_bytes())
    if sum(sizes) > room:
        raise BundleError(
            f"{bundle} has {sum(sizes):,} bytes, and {room:,} are free for a copy to check its signature; let TMPDIR "
            "name a larger folder, or give the server more memory"
        )

    def copy_file(source: str, target: str) -> None:
        nonlocal room
        room -= copy_regular(Path(source), Path(target), room)  # a file may have grown since

    shutil.copytree(bundle, copy, symlinks=True, copy_function=copy_file)


def _everything(hashing: Any) -> Any:
    """Return a hashing configuration that covers the whole folder except the signature."""
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)


def _model_signing(module: str) -> Any:
    # Imported on demand: model-signing is an optional extra and imports many packages.
    try:
        import model_signing
    except ImportError:
        raise BundleError(f"signatures need model-signing; {install('signing')}") from None
    return getattr(model_signing, module)


def _one_line(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return " ".join((reason or str(error)).split())[:200] or type(error).__name__
