"""Sequences whose state the server keeps: a bounded store, ordered by last use. It does no input or output.

A sequence is an episode of a policy with state or, where its requests have several rows, that many episodes in step.
It keeps to the endpoint, and so to the model version, at which it began. Each operation takes constant time.
"""

from collections import Counter, OrderedDict
from collections.abc import Container, Hashable
from typing import NamedTuple

from trpo_tf.serving.codecs.parameters import SequenceStep
from trpo_tf.serving.errors import NoSequenceError, RequestError, TooManySequencesError, quoted
from trpo_tf.serving.inference.endpoint import InferenceEndpoint
from trpo_tf.serving.runtime.observations import Array

MOST_AT_ONCE = 1000
"""Sequences that one call of `expire` frees."""


class Key(NamedTuple):
    """The key by which a sequence is found again.

    Attributes:
        place: transport, model and version, as requests name them.
        owner: name of the key of its client; empty if the server has no keys.
        sequence_id: the client's own id. 7 and "7" are two.
    """

    place: Hashable
    owner: str
    sequence_id: int | str


class Step(NamedTuple):
    """One step of a sequence, and whether it starts and ends the sequence."""

    key: Key
    is_start: bool
    is_end: bool

    @classmethod
    def of(cls, place: Hashable, owner: str | None, named: SequenceStep) -> "Step":
        """Return the step that a request names, of a client at a place."""
        return cls(Key(place, owner or "", named.sequence_id), named.is_start, named.is_end)


class Sequence:
    """A running sequence: `state` [rows, ...] by name, and when it was `used`, in seconds on the caller's clock."""

    __slots__ = ("endpoint", "rows", "state", "used")

    def __init__(self, endpoint: InferenceEndpoint, rows: int, state: dict[str, Array], used: float) -> None:
        self.endpoint, self.rows, self.state, self.used = endpoint, rows, state, used


class Sequences:
    """The running sequences, and why the latest others are gone.

    Attributes:
        live: number of sequences by model and version.
        expired: number of those freed since nothing was asked of them, by model.
        refused: number of those that could not begin since others were running, by model.
    """

    def __init__(self, most: int, idle_seconds: float) -> None:
        """Keep sequences of at most `most` rows in all, and each until it is idle for `idle_seconds`."""
        self._most, self._idle_seconds, self._rows = most, idle_seconds, 0
        self._sequences: OrderedDict[Key, Sequence] = OrderedDict()  # least recently used first
        self._stepping: dict[Key, int] = {}  # rows reserved by each step under way
        self._gone: OrderedDict[Key, str] = OrderedDict()  # why, oldest first
        self.live: Counter[tuple[str, str]] = Counter()
        self.expired: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def is_stepping(self, key: Key) -> bool:
        """Return whether a step of the sequence is under way."""
        return key in self._stepping

    def places(self) -> set[Hashable]:
        """Return the places that the running sequences name."""
        return {key.place for key in self._sequences}

    def is_running(self, key: Key) -> bool:
        """Return whether there is such a sequence, idle or not."""
        return key in self._sequences

    def find(self, key: Key, now: float) -> Sequence:
        """Return a running sequence, and count it as used. Raises `NoSequenceError`."""
        sequence = self._sequences.get(key)
        if sequence is not None and self._is_idle(sequence, now):
            self._expire(key, sequence)
            sequence = None
        if sequence is None:
            reason = self._gone.get(key, "it never began, or a server before this one had it")
            shown = quoted(key.sequence_id)
            raise NoSequenceError(f"there is no sequence {shown}: {reason}; begin one with sequence_start")
        sequence.used = now
        self._sequences.move_to_end(key)
        return sequence

    def begin_step(self, step: Step, endpoint: InferenceEndpoint, rows: int, now: float) -> Sequence:
        """Mark a step of the sequence as under way, and return the sequence. A new one is stored when the step ends.

        Raises `NoSequenceError`, `TooManySequencesError`, and `RequestError` for a number of rows that the sequence
        does not have, or that no sequence may have.
        """
        key = step.key
        if step.is_start:
            sequence, reserved = self._start(key, endpoint, rows, now)
        else:
            sequence, reserved = self.find(key, now), 0
            if sequence.rows != rows:
                shown = quoted(key.sequence_id)
                raise RequestError(f"sequence {shown} has {sequence.rows} rows, not {rows}; give as many in each step")
        self._stepping[key] = reserved
        self._rows += reserved
        return sequence

    def end_step(self, step: Step, sequence: Sequence, following: dict[str, Array] | None) -> None:
        """Keep the state that follows the step. None means that the step failed: all stays as it was before."""
        key = step.key
        self._rows -= self._stepping.pop(key)
        running = self._sequences.get(key)
        if following is None or not (step.is_start or sequence is running):  # or it was freed meanwhile
            return
        sequence.state = following
        if running is not None and (step.is_end or step.is_start):
            self._remove(key, running)
        if step.is_end:
            self._explain(key, "it has ended")
        elif step.is_start:
            self._add(key, sequence)

    def expire(self, now: float) -> None:
        """Free sequences that are idle, some at a time."""
        for _ in range(MOST_AT_ONCE):
            if not self._expire_oldest(now):
                return

    def keep_models(self, names: Container[str]) -> None:
        """Free the sequences of all models but those in `names`."""
        for key, sequence in list(self._sequences.items()):
            if sequence.endpoint.model.name not in names:
                self._remove(key, sequence)
                self._explain(key, "its model was unloaded")

    def _start(self, key: Key, endpoint: InferenceEndpoint, rows: int, now: float) -> tuple[Sequence, int]:
        """Return a new sequence, and how many rows it has beyond the one that it replaces."""
        if rows > self._most:
            raise RequestError(f"a sequence may have {self._most} rows at most, not {rows}")
        replaced = self._sequences.get(key)
        if replaced is not None:
            replaced.used = now
            self._sequences.move_to_end(key)
        more = max(0, rows - (replaced.rows if replaced else 0))
        while more and self._rows + more > self._most:
            if not self._expire_oldest(now):
                self.refused[endpoint.model.name] += 1
                raise TooManySequencesError("too many sequences are running; come again")
        state = {spec.name: spec.initial_rows(rows) for spec in endpoint.policy.manifest.state}
        return Sequence(endpoint, rows, state, now), more

    def _add(self, key: Key, sequence: Sequence) -> None:
        self._gone.pop(key, None)
        self._sequences[key] = sequence
        self._rows += sequence.rows
        self.live[_version_of(sequence)] += 1

    def _remove(self, key: Key, sequence: Sequence) -> None:
        del self._sequences[key]
        self._rows -= sequence.rows
        version = _version_of(sequence)
        self.live[version] -= 1
        if not self.live[version]:
            del self.live[version]

    def _explain(self, key: Key, reason: str) -> None:
        """Keep the reason why a sequence is gone, for as many as there may be sequences."""
        self._gone[key] = reason
        self._gone.move_to_end(key)
        if len(self._gone) > self._most:
            self._gone.popitem(last=False)

    def _expire(self, key: Key, sequence: Sequence) -> None:
        self._remove(key, sequence)
        self._explain(key, f"it expired after {self._idle_seconds:g} s without a step")
        self.expired[sequence.endpoint.model.name] += 1

    def _expire_oldest(self, now: float) -> bool:
        """Free the sequence that was used least recently, if it is idle; return whether it was."""
        for key, sequence in self._sequences.items():
            if not self._is_idle(sequence, now):
                return False
            self._expire(key, sequence)
            return True
        return False

    def _is_idle(self, sequence: Sequence, now: float) -> bool:
        return now - sequence.used > self._idle_seconds


def _version_of(sequence: Sequence) -> tuple[str, str]:
    return sequence.endpoint.model.name, sequence.endpoint.model.version
