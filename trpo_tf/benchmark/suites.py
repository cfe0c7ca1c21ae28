"""Suites of environments, with their steps. It imports no package, so that scripts of peers can use it."""

from collections.abc import Mapping

_OWN = "trpo_tf.benchmark.environments"

SUITES: Mapping[str, Mapping[str, int]] = {
    "classic": {
        "CartPole-v1": 100_000,
        "Acrobot-v1": 100_000,
        "Pendulum-v1": 100_000,
        "MountainCar-v0": 100_000,
        "MountainCarContinuous-v0": 50_000,
        "LunarLander-v3": 200_000,
    },
    "mujoco": dict.fromkeys(
        (
            "Ant-v5",
            "HalfCheetah-v5",
            "Hopper-v5",
            "Walker2d-v5",
            "Swimmer-v5",
            "Humanoid-v5",
            "InvertedDoublePendulum-v5",
            "Reacher-v5",
        ),
        1_000_000,
    ),
    "partial": {
        f"{_OWN}:CartPoleWithoutVelocities-v0": 200_000,
        f"{_OWN}:PendulumWithoutVelocity-v0": 150_000,
        f"{_OWN}:Cue-v0": 200_000,
        f"{_OWN}:HopperWithoutVelocities-v0": 1_000_000,
        f"{_OWN}:Walker2dWithoutVelocities-v0": 1_000_000,
    },
    "unseen-training": {
        "CartPole-v1": 50_000,
        "Acrobot-v1": 100_000,
        "Pendulum-v1": 100_000,
        "MountainCarContinuous-v0": 50_000,
        "LunarLanderContinuous-v3": 100_000,
        "shimmy:dm_control/cartpole-swingup-v0": 150_000,
        "HalfCheetah-v5": 200_000,
        "Swimmer-v5": 200_000,
        "FrozenLake-v1": 50_000,
        "Taxi-v4": 100_000,
        f"{_OWN}:MiniGrid-Empty-8x8-Flat-v0": 50_000,
        f"{_OWN}:ScoreAtEnd-v0": 100_000,
        f"{_OWN}:DriftingMass-v0": 100_000,
        f"{_OWN}:LateShift-v0": 100_000,
        f"{_OWN}:PendulumInOtherUnits-v0": 100_000,
    },
    "unseen": {
        "shimmy:dm_control/reacher-easy-v0": 100_000,
        "shimmy:dm_control/finger-spin-v0": 100_000,
        "shimmy:dm_control/cheetah-run-v0": 100_000,
        "Pusher-v5": 100_000,
        "Hopper-v5": 100_000,
        "LunarLander-v3": 100_000,
        "BipedalWalker-v3": 100_000,
        "CliffWalking-v1": 50_000,
        f"{_OWN}:MiniGrid-DoorKey-5x5-Flat-v0": 100_000,
        f"{_OWN}:SignalsAtEnd-v0": 100_000,
        f"{_OWN}:ThirtyAxes-v0": 100_000,
        f"{_OWN}:AcrobotInOtherUnits-v0": 100_000,
    },
}
"""Environment steps of each environment: those that RL Baselines3 Zoo trains for, and 1M for all of MuJoCo.

The defaults may be chosen on `unseen-training`. On `unseen` they are only measured, and nothing is chosen.
"""

UNTUNED = frozenset(("unseen", "unseen-training"))
"""Suites in which every environment has the default settings, even if there is a preset for it."""

NEEDS = {
    "LunarLander": ("Box2D",),
    "BipedalWalker": ("Box2D",),
    "shimmy:": ("shimmy", "dm_control"),
    f"{_OWN}:MiniGrid": ("minigrid",),
}
"""Prefix of an id -> packages that the environment needs in addition to those of training."""
