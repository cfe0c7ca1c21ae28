"""The model of an iteration with many workers: its limits, and that a simulation agrees with it."""

import dataclasses

import pytest

from benchmarks.training import scale_model as model


@pytest.fixture
def costs():
    return model.Costs(
        learner=0.002, worker=0.0004, receive=1e-6, update=0.05, update_step=2e-5, step=0.005, variation=0.05
    )


def test_one_worker_without_a_learner_takes_its_steps(costs):
    alone = model.Costs(0.0, 0.0, 0.0, 0.0, 0.0, step=0.005, variation=0.0)
    assert model.iteration_seconds(alone, 1, 100) == pytest.approx(0.5)
    assert model.simulated_seconds(alone, 1, 100) == pytest.approx(0.5)


@pytest.mark.parametrize("workers", [1, 10, 100, 1000])
@pytest.mark.parametrize("variation", [0.0, 0.05, 0.2])
def test_the_simulation_agrees_with_the_model(costs, workers, variation):
    varying = dataclasses.replace(costs, variation=variation)
    assert model.simulated_seconds(varying, workers) == pytest.approx(
        model.iteration_seconds(varying, workers), rel=0.05
    )


def test_at_the_limit_the_learner_takes_as_long_as_the_sampling(costs):
    limit, steps = model.learner_limit(costs), model.STEPS
    learner = costs.learner + limit * 2 * costs.one_answer(steps) - limit * costs.receive * steps
    assert learner + costs.update_of(limit * steps) == pytest.approx(costs.step * steps)
