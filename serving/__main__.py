"""`python -m serving BUNDLE`: serve a policy over HTTP."""

import argparse
import os
import sys
from collections.abc import Sequence

from serving.http import ServeError, serve
from serving.manifest import BundleError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments and serve; the exit status is 0 after SIGTERM or SIGINT, 2 for a user's error."""
    options = _parser().parse_args(arguments)
    try:
        serve(options.bundle, options.host, options.port, public_key=options.public_key)
    except (BundleError, ServeError) as error:
        if options.debug:
            raise
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("bundle", help="a bundle's folder, or a folder that holds one bundle")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=int, default=os.environ.get("PORT", "8080"), help="0 picks a free one ($PORT or 8080)"
    )
    parser.add_argument("--public-key", help="refuse a bundle whose signature does not hold for this key")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return parser


if __name__ == "__main__":
    sys.exit(main())
