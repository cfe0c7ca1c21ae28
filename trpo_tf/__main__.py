"""Entry point of `trpo-tf` and of `python -m trpo_tf`."""

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command of the command line; `argv` defaults to the arguments of this process."""
    _open_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["serve"]:
        # Skips the imports of the other commands: a server starts faster, is smaller, and needs fewer packages.
        from trpo_tf.serving.__main__ import main as serve

        sys.exit(serve(arguments[1:]))
    from trpo_tf.support.graceful_stop import remembered_interrupts

    try:
        with remembered_interrupts():
            from trpo_tf.cli.main import main as run

            run(arguments)
    except KeyboardInterrupt:  # during an import
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def _open_standard_streams() -> None:
    """Open standard streams that were closed, as `2>&-` does, on /dev/null.

    The next file to be opened would have their descriptor otherwise, and TensorFlow's log would be written into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest descriptor that is free: this one
            setattr(sys, name, open(descriptor, "r" if descriptor == 0 else "w", closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    main()
