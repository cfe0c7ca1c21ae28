"""A parser of command lines whose errors are one line."""

import argparse
import difflib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NoReturn

_KINDS = {"int": "whole number", "float": "number"}


class OneLineParser(argparse.ArgumentParser):
    """Parser that prints an error as one line, without the usage, and then exits with status 2.

    `elsewhere` maps options of other programs to what they are here.
    """

    elsewhere: Mapping[str, str] = MappingProxyType({})

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        said = self._readable(message)
        self.exit(2, f"error: {said}{' See' if said.endswith('?') else '; see'} {self.prog} --help\n")

    def _readable(self, message: str) -> str:
        if found := re.fullmatch(r"unrecognized arguments: (\S+).*", message, re.DOTALL):
            return self._unknown(found[1])
        if found := re.fullmatch(r"the following arguments are required: (.*)", message):
            return f"{found[1]} is missing"
        if found := re.fullmatch(r"argument (\S+): expected one argument", message):
            return f"{found[1]} needs a value"
        if found := re.fullmatch(r"argument (\S+): invalid (int|float) value: (.*)", message, re.DOTALL):
            return f"{found[1]}: {found[3]} is no {_KINDS[found[2]]}"
        return message.removeprefix("argument ")

    def _unknown(self, argument: str) -> str:
        option = argument.partition("=")[0]
        if not option.startswith("-"):
            return f"unexpected argument {argument!r}"
        if name := self.elsewhere.get(option.replace("_", "-")):
            return f"here {option} is {name}"
        close = difflib.get_close_matches(option, self._option_string_actions, n=1, cutoff=0.7)
        return f"unknown option {option}{f'; did you mean {close[0]}?' if close else ''}"
