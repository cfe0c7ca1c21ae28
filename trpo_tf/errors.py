"""Errors that a person can mend: the command line shows them as one line."""


class UserError(Exception):
    """Something asked for can't be done; the message says what is wrong and what to do."""


class EnvironmentFailure(RuntimeError):
    """An environment raised an exception, kept as the cause, or gave what it may not.

    Attributes:
        reason: what happened.
        where: the places where it did, from the outside in: an environment, a step.
    """

    def __init__(self, reason: str, *where: str) -> None:
        super().__init__(f"{', '.join(where)}: {reason}" if where else reason)
        self.reason, self.where = reason, where

    @property
    def cause(self) -> BaseException | None:
        """What the environment raised, if it did."""
        return self.__cause__.cause if isinstance(self.__cause__, EnvironmentFailure) else self.__cause__

    def at(self, *where: str) -> "EnvironmentFailure":
        """The same failure, in an outer place."""
        return EnvironmentFailure(self.reason, *where, *self.where)


def environment_failure(call: str, error: Exception, *where: str) -> EnvironmentFailure:
    """What to raise for an exception of an environment's `call`: its step or its reset."""
    if isinstance(error, EnvironmentFailure):
        return error.at(*where)
    return EnvironmentFailure(f"the environment's {call} raised {type(error).__name__}: {error}", *where)
