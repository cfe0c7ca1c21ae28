"""Errors that a person can mend: the command line shows them as one line."""


class UserError(Exception):
    """Something asked for can't be done; the message says what is wrong and what to do."""


class EnvironmentFailure(RuntimeError):
    """An environment raised an exception, kept as the cause; the message says how to go on."""


def environment_failure(where: str, error: Exception) -> EnvironmentFailure:
    """What to raise for an exception of an environment's `where`: its step or its reset."""
    return EnvironmentFailure(f"the environment's {where} raised {type(error).__name__}: {error}")


def not_finite_failure() -> EnvironmentFailure:
    """What to raise for a NaN or an infinity."""
    return EnvironmentFailure("the environment gave an observation or reward that is not finite")
