"""Bearer keys: `python -m serving.keys NAME >> FILE` makes one, shows it once, and appends its hash to a file.

A line of the file is `NAME:SHA-256 of the key in hex`; `#` begins a comment. A key has 256 random bits, so that a plain
hash can't be guessed from, however fast it is.
"""

import hashlib
import hmac
import re
import secrets
import sys
from pathlib import Path

_LINE = re.compile(r"[\w.@-]+:([0-9a-f]{64})")


class KeyFileError(ValueError):
    """A file of keys that can't be used; the message says why."""


def read_keys(path: str | Path) -> tuple[bytes, ...]:
    """The keys' hashes. Raises `KeyFileError`."""
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"can't read the keys in {path}: {error}") from None
    hashes = []
    for number, line in enumerate(text.splitlines(), 1):
        if not (stripped := line.partition("#")[0].strip()):
            continue
        matched = _LINE.fullmatch(stripped)
        if matched is None:
            raise KeyFileError(f"{path}, line {number} is not NAME:SHA256; make it with python -m serving.keys NAME")
        hashes.append(bytes.fromhex(matched[1]))
    if not hashes:
        raise KeyFileError(f"{path} has no key in it; make one with python -m serving.keys NAME")
    return tuple(hashes)


def is_known(authorization: bytes, hashes: tuple[bytes, ...]) -> bool:
    """Whether an Authorization header has one of the keys. It takes as long for a wrong one, wherever it differs."""
    scheme, _, key = authorization.partition(b" ")
    digest = hashlib.sha256(key.strip()).digest()
    known = False
    for expected in hashes:
        known |= hmac.compare_digest(digest, expected)
    return known and scheme.lower() == b"bearer"


def main() -> None:
    """Print a line for the file on stdout, and the key itself on stderr."""
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    key = secrets.token_urlsafe(32)
    line = f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"
    if _LINE.fullmatch(line) is None:
        sys.exit("usage: python -m serving.keys NAME >> FILE (a name has letters, digits and . _ @ -)")
    sys.stderr.write(f"{key}\n")
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
