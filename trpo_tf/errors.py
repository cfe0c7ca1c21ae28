"""Errors that a person can mend: the command line shows them as one line."""


class UserError(Exception):
    """Something asked for can't be done; the message says what is wrong and what to do."""


class EnvironmentFailure(RuntimeError):
    """An environment raised an exception, kept as the cause; the message says how to go on."""
