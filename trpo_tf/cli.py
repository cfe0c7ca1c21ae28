"""The command line: `trpo-tf COMMAND`."""

import dataclasses
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import tyro
from tyro.conf import OmitArgPrefixes

from serving import __version__
from trpo_tf.commands.acting import BenchLatency, Predict, Serve
from trpo_tf.commands.exporting import Export, Verify
from trpo_tf.commands.showing import Record, Report
from trpo_tf.commands.studies import Benchmark, Demo, Lab
from trpo_tf.commands.terminal import INTERRUPTED, WRONG_USE, fail, one_line, say
from trpo_tf.commands.training import Evaluate, Train
from trpo_tf.config import Config, load_preset, preset_for
from trpo_tf.errors import UserError


class _AnyConfig(Config):
    # Settings of which some are still to come from a preset, so that they can't be judged yet.
    __doc__ = Config.__doc__

    def __post_init__(self) -> None:
        """Accept them."""


@dataclasses.dataclass(frozen=True)
class _AnyTrain(Train):
    __doc__ = Train.__doc__
    config: _AnyConfig = dataclasses.field(default_factory=lambda: _AnyConfig(""))


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": _AnyTrain,
    "evaluate": Evaluate,
    "export": Export,
    "verify": Verify,
    "predict": Predict,
    "record": Record,
    "report": Report,
    "bench-latency": BenchLatency,
    "serve": Serve,
    "demo": Demo,
    "lab": Lab,
    "benchmark": Benchmark,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; wrong use ends with one line and exit status 2, or with a traceback after `--debug`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["serve"]:
        Serve(tuple(arguments[1:]))()  # the server reads its options itself
    if arguments == ["--version"]:
        say(f"trpo-tf {__version__}")
        return
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # Environments that a user's own module registers are found beside where the command is run.
    sys.path.append(os.getcwd())
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        parse(arguments)()
    except KeyboardInterrupt as interrupt:
        fail(str(interrupt) or "interrupted", INTERRUPTED)
    except (UserError, OSError, ValueError, RuntimeError, ImportError, FloatingPointError) as error:
        if debug:
            traceback.print_exc()
            sys.exit(WRONG_USE)
        fail(f"error: {one_line(error)}", WRONG_USE)


def parse(arguments: list[str]) -> Callable[[], None]:
    """The command that `arguments` ask for; settings given there go before those of the preset.

    Raises `UserError` or `SystemExit`.
    """
    command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="trpo-tf",
        description="Train policies with TRPO, export them to ONNX, serve them on a CPU. Any command shows a traceback "
        "with its error after --debug.",
        args=arguments,
        config=(OmitArgPrefixes,),
    )
    if isinstance(command, Train) and command.config.env_id:
        env_id = command.config.env_id
        preset = Train(load_preset(command.preset or preset_for(env_id), env_id))
        return tyro.cli(Train, prog="trpo-tf train", args=arguments[1:], default=preset, config=(OmitArgPrefixes,))
    return command


def _show_warning(message: Warning | str, category: type[Warning], *_where: Any) -> None:
    if not issubclass(category, DeprecationWarning | FutureWarning):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
