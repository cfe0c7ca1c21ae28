"""Errors that a user can fix; the command line shows them as one line."""

import sysconfig
import traceback
from pathlib import Path

ENVIRONMENT_ERRORS = (Exception, SystemExit)
"""What a call of an environment may raise: some call `sys.exit` where their window is closed, or a licence lacks."""

_NEVER_AT_FAULT = (str(Path(__file__).parent), "<frozen")
"""Beginnings of the files that are never named as the place of a failure."""

_PYTHON = sysconfig.get_path("stdlib")


class UserError(Exception):
    """A request can't be carried out; the message says what is wrong and what to do."""


class EnvironmentFailure(RuntimeError):
    """An environment raised an exception, which is kept as the cause, or returned an invalid value.

    Attributes:
        reason: what happened.
        where: where it happened, from the outside in: an environment, a step.
    """

    def __init__(self, reason: str, *where: str) -> None:
        super().__init__(f"{', '.join(where)}: {reason}" if where else reason)
        self.reason, self.where = reason, where

    @property
    def cause(self) -> BaseException | None:
        """The exception that the environment raised, or None."""
        return self.__cause__.cause if isinstance(self.__cause__, EnvironmentFailure) else self.__cause__

    def at(self, *where: str) -> "EnvironmentFailure":
        """Return the same failure with outer locations added."""
        return EnvironmentFailure(self.reason, *where, *self.where)


def environment_failure(call: str, error: Exception | SystemExit, *where: str) -> EnvironmentFailure:
    """Return the failure to raise for an exception of an environment's `call`, its step or its reset."""
    if isinstance(error, EnvironmentFailure):
        return error.at(*where)
    reason = f"the environment's {call} raised {described(error)}"
    return EnvironmentFailure(f"{reason}{_of_old_gym(call, str(error))}", *where)


def described(error: BaseException) -> str:
    """Return an exception's type, message and place in one line; the source line stands for a message that is empty."""
    text, place = " ".join(str(error).split()), _place(error)
    if place is None:
        return f"{type(error).__name__}: {text}"
    return f"{type(error).__name__}: {text or place.line} ({place.filename}, line {place.lineno})"


def _place(error: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost line of the user's own code at which an exception was raised, or else of a package's.

    Gymnasium raises some exceptions of a constructor again: then it is that of the first one.
    """
    raised: BaseException | None = error
    while raised is not None:
        if own := [frame for frame in _frames(raised) if not is_installed(frame.filename)]:
            return own[-1]
        raised = raised.__cause__ or raised.__context__
    frames = _frames(error)
    packages = [frame for frame in frames if "gymnasium" not in Path(frame.filename).parts]
    return packages[-1] if packages else frames[-1] if frames and not str(error) else None


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Return where an exception passed, without this package and Python's own modules."""
    frames = traceback.extract_tb(error.__traceback__)
    own = (frame for frame in frames if not frame.filename.startswith(_NEVER_AT_FAULT))
    return [frame for frame in own if is_installed(frame.filename) or not frame.filename.startswith(_PYTHON)]


def is_installed(file: str) -> bool:
    """Return whether a Python file is of an installed package."""
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def _of_old_gym(call: str, reason: str) -> str:
    """Explain what Gymnasium expects of a call if it failed as it does with an environment of the former gym."""
    if call == "step" and "unpack" in reason:
        return "; in Gymnasium a step returns five values: observation, reward, terminated, truncated, info"
    if call == "reset" and ("unpack" in reason or "unexpected keyword argument" in reason):
        return "; in Gymnasium reset takes seed and options by keyword, and returns observation and info"
    return ""
