"""The store of sequences, and their runner, with a clock of the test's own."""

import asyncio
import time
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest

from tests.support.paths import BUNDLES
from trpo_tf.serving.codecs.parameters import SequenceStep
from trpo_tf.serving.codecs.request_validation import InferRequest
from trpo_tf.serving.errors import BundleError, NoSequenceError, RequestError, TooManySequencesError
from trpo_tf.serving.inference.batching import Batcher
from trpo_tf.serving.inference.endpoint import InferenceEndpoint
from trpo_tf.serving.inference.kept_state import SequenceRunner
from trpo_tf.serving.inference.runners import DirectRunner
from trpo_tf.serving.inference.sequences import Key, Sequences, Step
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeError, ServeOptions
from trpo_tf.serving.repository.discovery import resolve_source
from trpo_tf.serving.repository.loading import load_model

SEEN = np.random.default_rng(0).uniform(-2, 2, (40, 2)).astype(np.float32)
NEXT = {"hidden": np.ones((1, 8), np.float32)}


@pytest.fixture(scope="module")
def endpoint():
    model = load_model(resolve_source(BUNDLES / "recurrent").only)
    return InferenceEndpoint(model, ServeOptions(), Metrics(), "http")


def step(number, *, start=False, end=False, owner="") -> Step:
    return Step(Key("place", owner, number), start, end)


def begin(sequences, endpoint, number, now=0.0, rows=1):
    started = step(number, start=True)
    sequences.end_step(started, sequences.begin_step(started, endpoint, rows, now), NEXT)


def test_the_least_recently_used_expire_first_and_make_room(endpoint):
    sequences = Sequences(3, 10.0)
    for number in range(3):
        begin(sequences, endpoint, number, now=number)
    sequences.find(Key("place", "", 0), 9.0)
    with pytest.raises(TooManySequencesError):
        begin(sequences, endpoint, 3, now=11.0)
    begin(sequences, endpoint, 3, now=11.5)  # 1 has been idle for 10.5 s
    with pytest.raises(NoSequenceError, match="there is no sequence 1: it expired after 10 s without a step"):
        sequences.find(Key("place", "", 1), 11.5)
    sequences.expire(12.5)
    assert dict(sequences.live) == {("recurrent", "1"): 2}
    assert sequences.find(Key("place", "", 0), 12.5).used == 12.5
    assert (sequences.expired["recurrent"], sequences.refused["recurrent"]) == (2, 1)


def test_an_idle_sequence_is_gone_at_its_next_step_even_if_nobody_has_looked(endpoint):
    sequences = Sequences(3, 10.0)
    begin(sequences, endpoint, 1)
    with pytest.raises(NoSequenceError, match="expired"):
        sequences.begin_step(step(1), endpoint, 1, 10.1)
    assert not sequences.live


def test_rows_are_counted_through_starts_ends_and_failures(endpoint):
    sequences = Sequences(6, 10.0)
    for _ in range(3):  # each time all of it is given back
        begin(sequences, endpoint, 1, rows=2)
        begin(sequences, endpoint, 2, rows=4)
        with pytest.raises(TooManySequencesError):
            begin(sequences, endpoint, 3)
        begin(sequences, endpoint, 2, rows=3)  # anew, with fewer rows
        failing = step(3, start=True)
        sequences.end_step(failing, sequences.begin_step(failing, endpoint, 1, 0.0), None)
        begin(sequences, endpoint, 3)
        for number, rows in ((1, 2), (2, 3), (3, 1)):
            last = step(number, end=True)
            sequences.end_step(last, sequences.begin_step(last, endpoint, rows, 0.0), NEXT)
        at_once = step(4, start=True, end=True)
        sequences.end_step(at_once, sequences.begin_step(at_once, endpoint, 6, 0.0), NEXT)
        with pytest.raises(NoSequenceError, match="it has ended"):
            sequences.find(Key("place", "", 4), 0.0)
    with pytest.raises(RequestError, match="a sequence may have 6 rows at most, not 7"):
        begin(sequences, endpoint, 1, rows=7)


def test_a_start_that_fails_leaves_the_running_sequence(endpoint):
    sequences = Sequences(6, 10.0)
    begin(sequences, endpoint, 1)
    again = step(1, start=True)
    sequences.end_step(again, sequences.begin_step(again, endpoint, 1, 1.0), None)
    assert sequences.find(Key("place", "", 1), 1.0).state is NEXT


def test_a_model_that_goes_takes_its_sequences_also_one_whose_step_is_under_way(endpoint):
    sequences = Sequences(6, 10.0)
    begin(sequences, endpoint, 1)
    under_way = step(1)
    sequence = sequences.begin_step(under_way, endpoint, 1, 0.0)
    sequences.keep_models({"another"})
    sequences.end_step(under_way, sequence, NEXT)
    with pytest.raises(NoSequenceError, match="its model was unloaded"):
        sequences.find(Key("place", "", 1), 0.0)
    assert not sequences.live


def test_a_flood_of_starts_has_bounded_memory(endpoint):
    sequences, sizes = Sequences(100, 1.0), []
    tracemalloc.start()
    try:
        for number in range(3000):
            with suppress(TooManySequencesError):
                begin(sequences, endpoint, f"{number:0128}", now=number / 300)
            if number % 1000 == 999:
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sequences.live["recurrent", "1"] <= 100
    assert sizes[2] < 1.2 * sizes[0]
    # What is reserved at the start, beside the state, is enough.
    assert sizes[2] < 100 * (2048 + 2 * NEXT["hidden"].nbytes) + 100_000


def asked(observation, **flags) -> InferRequest:
    inputs = {"obs": observation[np.newaxis], "reset": np.array([flags.get("is_start", False)])}
    named = SequenceStep(1, flags.get("is_start", False), flags.get("is_end", False))
    return InferRequest(inputs, {"action": False}, sequence=named)


def test_batching_joins_sequences_and_runs_the_steps_of_one_in_order(endpoint):
    async def play():
        runner = Batcher(64)
        sequences, answers = SequenceRunner(ServeOptions(), runner), {1: [], 2: [], 3: []}
        for number in range(6):
            for name in answers:  # all in one turn of the event loop
                request = asked(SEEN[10 * name + number], is_start=number == 0)
                one = step(name, start=number == 0)
                assert sequences.endpoint_of(one, endpoint) is endpoint
                waiting = sequences.run(one, endpoint, request)
                waiting.done = answers[name].append
        waiting.done = None  # its client has left: the step counts all the same
        await asyncio.sleep(0)
        return answers, sequences

    answers, sequences = asyncio.run(play())
    for name, given in answers.items():
        session = endpoint.policy.start()
        expected = [session.act(SEEN[10 * name + number]) for number in range(6)]
        found = [outputs["action"][0] for outputs in given]
        np.testing.assert_allclose(found, expected[: len(found)], atol=1e-6)
        kept = sequences.sequences.find(Key("place", "", name), time.monotonic()).state["hidden"]
        np.testing.assert_allclose(kept, session.state["hidden"], atol=1e-6)
        assert kept.base is None  # no view of a batch, which would stay in memory
    assert [len(given) for given in answers.values()] == [6, 6, 5]


def test_a_step_that_fails_leaves_the_sequence_as_it_was(endpoint):
    sequences = SequenceRunner(ServeOptions(), DirectRunner())
    sequences.run(step(1, start=True), endpoint, asked(SEEN[0], is_start=True))
    before = sequences.sequences.find(Key("place", "", 1), time.monotonic()).state
    wrong = asked(SEEN[1])._replace(outputs={"no output": False})
    with pytest.raises(Exception, match="no output"):
        sequences.run(step(1), endpoint, wrong)
    assert sequences.sequences.find(Key("place", "", 1), time.monotonic()).state is before
    assert not sequences.sequences.is_stepping(Key("place", "", 1))


def test_a_bundle_is_refused_whose_states_would_not_fit():
    location = resolve_source(BUNDLES / "recurrent").only
    with pytest.raises(BundleError, match=r"MB for the states of 1000000000000 sequences \(--max-sequences\)"):
        load_model(location, sequences=10**12)
    load_model(resolve_source(BUNDLES / "discrete").only, sequences=10**12)  # no state


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_sequences": -1}, "--max-sequences must be 0 or more, not -1"),
        ({"max_sequences": 10**7}, "--max-sequences must be at most 1000000"),
        ({"sequence_idle": 0}, "--sequence-idle must be more than 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, reason):
    with pytest.raises(ServeError, match=reason):
        ServeOptions(**options)
