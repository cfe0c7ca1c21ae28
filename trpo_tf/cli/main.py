"""The command line: `trpo-tf COMMAND`."""

import contextlib
import dataclasses
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import tyro
from tyro.conf import OmitArgPrefixes
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

from trpo_tf.cli.acting import BenchLatency, Predict, Serve
from trpo_tf.cli.exporting import Export, Verify
from trpo_tf.cli.parser_errors import check_command, with_one_line
from trpo_tf.cli.showing import Record, Report
from trpo_tf.cli.studies import Benchmark, Demo, Lab, Search
from trpo_tf.cli.terminal import (
    BROKEN_PIPE,
    INTERRUPTED,
    WRONG_USE,
    WrappedText,
    fail,
    one_line,
    say,
    widen,
    without_colour,
)
from trpo_tf.cli.training import Evaluate, Train
from trpo_tf.config.former_names import FLAGS
from trpo_tf.config.names_elsewhere import ADVICE, ENVIRONMENT, NAMES, OPTIONS
from trpo_tf.config.setting_checks import whole_number
from trpo_tf.config.settings import (
    Config,
    differing_settings,
    former_own_names,
    load_preset,
    preset_for,
    read_config,
    with_changes,
)
from trpo_tf.errors import UserError
from trpo_tf.serving import __version__
from trpo_tf.serving.argument_checks import COPY_URL, is_url
from trpo_tf.serving.errors import install
from trpo_tf.support.graceful_stop import raise_if_interrupted
from trpo_tf.support.shell import in_command


class _AnyConfig(Config):
    # Some settings are still to come from a preset, so checks would fail too early.
    __doc__ = Config.__doc__

    def __post_init__(self) -> None:
        """Skip the checks of `Config`."""


@dataclasses.dataclass(frozen=True)
class _AnyTrain(Train):
    __doc__ = Train.__doc__
    config: _AnyConfig = dataclasses.field(default_factory=lambda: _AnyConfig(""))


_OPTIONAL = frozenset(
    (
        *("tensorflow", "tensorflow_probability", "keras", "tf_keras", "gymnasium", "mujoco", "tensorboard", "tomli_w"),
        *("rich", "matplotlib", "PIL", "tf2onnx", "onnx", "onnxruntime"),
    )
)
"""Packages that are absent from an installation for serving only, or without extras."""

_NO_DOCSTRINGS = 2
"""Level of Python's optimisation, -OO, from which on modules have none."""

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
    "search": Search,
}


@in_command()
def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; wrong use ends with exit status 2 and one line, or a traceback after `--debug`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--version" in arguments:
        say(f"trpo-tf {__version__}")
        return
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # A user's module that registers environments is found in the folder where the command is run.
    sys.path.append(os.getcwd())
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the user's other programs may take another
    try:
        parse(arguments)()
    except KeyboardInterrupt as interrupt:
        fail(str(interrupt) or "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe has closed it, as `head` does; Python would fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except ModuleNotFoundError as error:
        raise_if_interrupted()
        if debug:
            raise
        needed = f"; {install('all')}" if (error.name or "").partition(".")[0] in _OPTIONAL else ""
        fail(f"error: {one_line(error)}{needed}", WRONG_USE)
    except AttributeError as error:
        if debug or sys.flags.optimize < _NO_DOCSTRINGS:
            raise
        fail(f"error: {one_line(error)}; -OO removes docstrings, which packages of TensorFlow need: take -O", WRONG_USE)
    except (UserError, OSError, ValueError, RuntimeError, ImportError, FloatingPointError) as error:
        raise_if_interrupted()  # Python 3.11 makes a RuntimeError of one that arrives while a class is made
        if debug:
            traceback.print_exc()
            sys.exit(WRONG_USE)
        fail(f"error: {one_line(error)}", WRONG_USE)


def parse(arguments: list[str]) -> Callable[[], None]:
    """Return the command that `arguments` name; settings given there override those of the preset.

    Raises `UserError` or `SystemExit`.
    """
    check_command(arguments, COMMANDS)
    _refuse_names_elsewhere(arguments)
    arguments = _with_present_options(arguments)
    widen()
    with _plain_values(), contextlib.redirect_stdout(cast(TextIO, WrappedText(sys.stdout))):
        command = with_one_line(_any_command, arguments)
        if not isinstance(command, Train):
            return command
        if command.resume is not None:
            # 0 as the default tells whether --total-steps was given, since every valid number may be given.
            return _train_options(_AnyTrain(_AnyConfig("", total_steps=0)), arguments)
        if command.settings is None and not command.config.env_id:
            return command
        start = with_changes(_settings_to_start_from(command), command.changes)
        return _train_options(Train(start), arguments)


def _any_command(arguments: list[str]) -> Callable[[], None]:
    command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="trpo-tf",
        description="Train policies with TRPO, export them to ONNX, serve them on a CPU. --version prints the "
        "version; with --debug any command shows a traceback with its error.",
        args=arguments,
        config=(OmitArgPrefixes,),
    )
    return command


def _train_options(default: Train, arguments: list[str]) -> Train:
    """Return the command `train` with the options that are given, and the others of `default`."""

    def parse(given: list[str]) -> Train:
        return tyro.cli(type(default), prog="trpo-tf train", args=given[1:], default=default, config=(OmitArgPrefixes,))

    return with_one_line(parse, arguments)


def _with_present_options(arguments: list[str]) -> list[str]:
    """Return the arguments with options of earlier releases replaced by the present ones, and warn of each."""
    former = {f"--{_option(name)}": f"--{_option(present)}" for name, present in former_own_names().items()}
    found: list[str] = []
    for argument in arguments:
        if (flag := FLAGS.get(argument.replace("_", "-"))) is not None:
            warnings.warn(f"{argument} is now {' '.join(flag)}", stacklevel=2)
            found.extend(flag)
            continue
        option, equals, value = argument.partition("=")
        present = former.get(f"--{_option(option[2:])}") if option.startswith("--") else None
        if present is not None:
            warnings.warn(f"{option} is now {present}", stacklevel=2)
        found.append(f"{present}{equals}{value}" if present else argument)
    return found


def _refuse_names_elsewhere(arguments: list[str]) -> None:
    """Raise `UserError` for an option of training or evaluation by the name that another library has for it."""
    if arguments[:1] not in (["train"], ["search"], ["evaluate"]):
        return
    for argument in arguments[1:]:
        option = argument.partition("=")[0]
        name = option[2:].replace("-", "_") if option.startswith("--") else ""
        if name in ADVICE:
            raise UserError(f"unknown option {option}; {ADVICE[name]}")
        if arguments[0] == "evaluate":
            continue
        if name in ENVIRONMENT:
            raise UserError(f"the environment stands without {option}: trpo-tf {arguments[0]} CartPole-v1")
        if name in NAMES or name in OPTIONS:
            raise UserError(f"here {option} is --{_option((NAMES | OPTIONS)[name])}; see trpo-tf {arguments[0]} --help")


def _option(name: str) -> str:
    return name.replace("_", "-")


def _settings_to_start_from(command: Train) -> Config:
    if command.settings is not None:
        if command.preset is not None:
            raise UserError("--config has all settings; leave out --preset")
        return read_config(command.settings)
    env_id = command.config.env_id
    preset = command.preset or preset_for(_with_version(env_id))
    return load_preset(preset, env_id, differing_settings(command.config))


def _plain_values() -> ConstructorRegistry:
    """Return parsing rules by which an integer may be written as 1e5, and a path starts with ~ after = too."""
    registry = ConstructorRegistry()

    def add_rule(kind: type, metavar: str, parse: Callable[[str], Any], instances: Any = None) -> None:
        spec: PrimitiveConstructorSpec[Any] = PrimitiveConstructorSpec(
            nargs=1,
            metavar=metavar,
            instance_from_str=lambda texts: parse(texts[0]),
            is_instance=lambda value: isinstance(value, instances or kind),
            str_from_instance=lambda value: [str(value)],
        )
        registry.primitive_rule(lambda info: spec if info.type is kind else None)

    add_rule(int, "INT", _whole_number)
    add_rule(float, "FLOAT", _number, int | float)
    add_rule(Path, "PATH", _path)
    return registry


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        value = whole_number(_number(text))
        if not isinstance(value, int):
            raise ValueError(f"{text!r} is no whole number") from None
        return value


def _path(text: str) -> Path:
    if not text:
        raise ValueError("the path is empty, which would mean the working directory; give one")
    if is_url(text):
        raise ValueError(f"{text} is a URL; {COPY_URL}")
    return Path(text).expanduser()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is no number, such as 10, 0.5 or 1e5") from None


def _with_version(env_id: str) -> str:
    """Return the id, with its latest version if it has none; only then is Gymnasium imported."""
    if re.search(r"-v\d+$", env_id):
        return env_id
    from trpo_tf.envs.make import readable_errors, resolved_id

    with readable_errors(env_id):
        return resolved_id(env_id)


def _show_warning(message: Warning | str, category: type[Warning], *_where: Any) -> None:
    if not issubclass(category, DeprecationWarning | FutureWarning):
        # Gymnasium's warnings have colours, and a name of their level.
        plain = without_colour(" ".join(str(message).split())).removeprefix("WARN: ")
        print(f"warning: {plain}", file=sys.stderr)  # noqa: T201
