"""What clients report: counts of outcomes, wrong answers, lost requests, and how long answers took."""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

MOST_KEPT = 3
"""Messages of each kind of client."""


class Loss(NamedTuple):
    """A request without an answer, on a connection that is known by the client's port or the server's address."""

    when: float
    connection: int | str
    reason: str


class Gap(NamedTuple):
    """A sequence that was there after its latest answer, and is not when the next step is answered."""

    since: float
    until: float
    reason: str


@dataclass
class Tally:
    """What one process of clients has seen.

    Attributes:
        outcomes: how often, by the kind of client and outcome.
        wrong: of each kind of client the first answers that are not right, or not what the request deserves.
        lost: requests without an answer that had a right to one.
        gone: sequences that the server does not have any more.
        refused: connections that were refused, though nothing was lost by it.
        microseconds: until answers, by kind of client.
        by_second: right answers by protocol and second of the monotonic clock, which all processes share.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[Loss] = field(default_factory=list)
    gone: list[Gap] = field(default_factory=list)
    refused: list[Loss] = field(default_factory=list)
    microseconds: dict[str, Counter[int]] = field(default_factory=dict)
    by_second: Counter[tuple[str, int]] = field(default_factory=Counter)

    def count(self, kind: str, outcome: str) -> None:
        """A client of a kind has met an outcome."""
        self.outcomes[kind, outcome] += 1

    def answered(self, kind: str, microseconds: int, protocol: str) -> None:
        """A right answer."""
        self.count(kind, "right")
        self.took(kind, microseconds)
        self.by_second[protocol, int(time.monotonic())] += 1

    def took(self, kind: str, microseconds: int) -> None:
        """An answer took so long."""
        self.microseconds.setdefault(kind, Counter())[microseconds // 10 * 10] += 1

    def is_wrong(self, kind: str, message: str) -> None:
        """An answer that is wrong."""
        self.count(kind, "wrong")
        if self.outcomes[kind, "wrong"] <= MOST_KEPT:
            self.wrong.append(f"{kind}: {message}")

    def is_lost(self, kind: str, connection: int | str, reason: object) -> None:
        """A request without an answer."""
        self.count(kind, "lost")
        self.lost.append(Loss(time.monotonic(), connection, f"{kind}: {reason or 'closed'}"))

    def has_no_connection(self, kind: str, error: OSError) -> None:
        """Nothing was sent, so that nothing is lost; but who is refused may ask whether the server is there."""
        self.count(kind, "no connection")
        if isinstance(error, ConnectionRefusedError):
            self.refused.append(Loss(time.monotonic(), "", f"{kind}: refused"))


def percentiles(microseconds: Counter[int], *shares: float) -> list[int]:
    """Nearest-rank percentiles of counted values."""
    values = np.array(sorted(microseconds))
    ranks = np.cumsum([microseconds[value] for value in values])
    return [int(values[np.searchsorted(ranks, share * ranks[-1])]) for share in shares]
