"""Results of runs that never were."""

import json

from trpo_tf.benchmark.results import Result
from trpo_tf.benchmark.scores.peers import PeerRun
from trpo_tf.config.settings import Config


def result(environment: str, seed: int, score: float, curve=((100, 0.0), (1000, 50.0)), steps: int = 10_000) -> Result:
    evaluation = {
        "mean_return": score,
        "std_return": 1.0,
        "min_return": score - 1,
        "max_return": score + 1,
        "mean_length": 20.0,
        "episodes": 20,
    }
    return Result(
        environment=environment,
        seed=seed,
        steps=steps - 40,
        evaluation=evaluation,
        curve=curve,
        seconds=2.5,
        steps_per_second=steps / 2.5,
        config=json.loads(json.dumps(Config(environment, seed=seed, total_steps=steps).to_dict())),
        versions={"tensorflow": "2.21.0"},
        machine={"cpu": "Abacus <1>", "cores": 2, "system": "Linux"},
    )


def peer_run(environment: str, seed: int, score: float, steps: int = 10_000, settings: str = "zoo") -> PeerRun:
    return PeerRun(environment, seed, steps, score, 1.0, 3.0, "1.0", settings, None)


RESULTS = [result("Left-v0", seed, score) for seed, score in enumerate([10.0, 20.0, 60.0])] + [
    result("Right-v0", 0, -5.0, curve=())
]
PEER = [peer_run("Left-v0", 0, 15.0), peer_run("Left-v0", 1, 20.0), peer_run("Right-v0", 0, 1.0, steps=999)]
