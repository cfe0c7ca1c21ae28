"""Bearer keys: `python -m trpo_tf.serving.keys NAME >> FILE` makes one, shows it once, and appends its hash to a file.

A line of the file is `NAME:SHA-256 of the key in hex`; `#` starts a comment. A key has 256 random bits. So it can't be
found from its hash by guessing, and a fast hash without salt is enough.
"""

import argparse
import hashlib
import hmac
import os
import re
import sys
from pathlib import Path

from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.support.one_line_parser import OneLineParser
from trpo_tf.serving.support.regular_file import read_regular

_NAME = re.compile(r"[\w.@][\w.@-]*")
_LINE = re.compile(r"([\w.@-]+):([0-9a-f]{64})")
_MAKE = "make it with python -m trpo_tf.serving.keys NAME"


class KeyFileError(ServeError):
    """The key file can't be used; the message says why."""


class KeyRing:
    """The valid keys. HTTP and gRPC share one object, so that a key is revoked for both at once."""

    def __init__(self, path: str | Path) -> None:
        """Read the keys. Raises `KeyFileError`."""
        self.path = path
        self._names = read_keys(path)

    def __len__(self) -> int:
        return len(self._names)

    def reload(self) -> bool:
        """Read the file again, and return whether the keys have changed.

        Raises `KeyFileError` if the file can't be used now: the keys then stay as they were.
        """
        names = read_keys(self.path)
        is_changed, self._names = names != self._names, names
        return is_changed

    def name_of(self, authorization: bytes) -> str | None:
        """Return the name of the key in an Authorization header; None if it has no valid key.

        The duration does not depend on where a wrong key differs, so that timing reveals nothing.
        """
        scheme, _, key = authorization.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        found = None
        for expected, name in self._names.items():
            if hmac.compare_digest(digest, expected):
                found = name
        return found if scheme.lower() == b"bearer" else None


def refusal(authorization: bytes) -> str:
    """Return the error message for a client whose Authorization header has no valid key."""
    what = "the key is not known; give another" if gives_key(authorization) else "give a key"
    return f"{what}: Authorization: Bearer KEY"


def gives_key(authorization: bytes) -> bool:
    """Return whether an Authorization header has a key, valid or not."""
    scheme, _, key = authorization.partition(b" ")
    return scheme.lower() == b"bearer" and bool(key.strip())


def read_keys(path: str | Path) -> dict[bytes, str]:
    """Return the names of the keys by their SHA-256. Raises `KeyFileError`."""
    names: dict[bytes, str] = {}
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not (stripped := line.partition("#")[0].strip()):
            continue
        matched = _LINE.fullmatch(stripped)
        if matched is None:
            raise KeyFileError(f"{path}, line {number} {_what_is_wrong(stripped)}")
        name, digest = matched[1], bytes.fromhex(matched[2])
        if digest in names:
            raise KeyFileError(f"{path}, line {number} has the key of {names[digest]!r} again; remove one of the two")
        if name in names.values():
            raise KeyFileError(f"{path}, line {number}: there is another {name!r}; give each key a name of its own")
        names[digest] = name
    if not names:
        raise KeyFileError(f"{path} has no key in it; make one with python -m trpo_tf.serving.keys NAME")
    return names


def _read(path: str | Path) -> str:
    """Return the text of a file, without a byte order mark. Raises `KeyFileError`."""
    try:
        return read_regular(path).decode("utf-8-sig")
    except OSError as error:
        raise KeyFileError(f"can't read the keys in {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"can't read the keys in {path}: it is not text; {_MAKE}") from None


def _what_is_wrong(line: str) -> str:
    if re.match(r"[\w.@-]+:[0-9a-f]{64}[\w.@-]", line):
        return "goes on after its SHA-256; if that is the next key, put a line end between them"
    return f"is not NAME:SHA256; {_MAKE}"


def _name(text: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no name: use letters, digits and . _ @ -, and no - at its start")
    return text


def main() -> None:
    """Make a key. Its line for the file goes to stdout, and the key itself to stderr."""
    parser = OneLineParser(
        prog="python -m trpo_tf.serving.keys",
        description="Make a key for a client. Its name and SHA-256 go to stdout, for the file that --keys names; the "
        "key itself goes to stderr, once.",
        epilog="example: python -m trpo_tf.serving.keys robot >> keys",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", type=_name, help="whose key it is, as the access log shows it")
    name = parser.parse_args().name
    import secrets

    key = secrets.token_urlsafe(32)
    try:
        os.write(1, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n".encode())
    except OSError as error:
        sys.exit(f"error: can't write the key's line: {error.strerror}; no key was made")
    sys.stderr.write(f"{key}\n")


if __name__ == "__main__":
    main()
