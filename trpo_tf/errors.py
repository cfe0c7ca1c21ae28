"""Errors that a user can fix; the command line shows them as one line."""

ENVIRONMENT_ERRORS = (Exception, SystemExit)
"""What a call of an environment may raise: some call `sys.exit` where their window is closed, or a licence lacks."""


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
    reason = f"the environment's {call} raised {type(error).__name__}: {error}"
    return EnvironmentFailure(f"{reason}{_of_old_gym(call, str(error))}", *where)


def _of_old_gym(call: str, reason: str) -> str:
    """Explain what Gymnasium expects of a call if it failed as it does with an environment of the former gym."""
    if call == "step" and "unpack" in reason:
        return "; in Gymnasium a step returns five values: observation, reward, terminated, truncated, info"
    if call == "reset" and ("unpack" in reason or "unexpected keyword argument" in reason):
        return "; in Gymnasium reset takes seed and options by keyword, and returns observation and info"
    return ""
