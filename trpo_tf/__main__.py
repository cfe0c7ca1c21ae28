"""Entry point of `trpo-tf` and of `python -m trpo_tf`."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command of the command line; `argv` defaults to the arguments of this process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["serve"]:
        # Skips the imports of the other commands: a server starts faster, is smaller, and needs fewer packages.
        from trpo_tf.serving.__main__ import main as serve

        sys.exit(serve(arguments[1:]))
    from trpo_tf.support.graceful_stop import remember_interrupts

    try:
        remember_interrupts()
        from trpo_tf.cli.main import main as run

        run(arguments)
    except KeyboardInterrupt:  # during an import
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
