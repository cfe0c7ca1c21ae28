"""Environments of other packages, where they are installed: made, stepped together, and their spaces described."""

import contextlib

import numpy as np
import pytest

from trpo_tf.config.environment import Environment
from trpo_tf.envs.agents import Parallel
from trpo_tf.envs.make import make_env
from trpo_tf.envs.spaces import Spaces
from trpo_tf.envs.vector.backends import make_vector_env
from trpo_tf.errors import UserError
from trpo_tf.evaluation.evaluate import play

KEPT = 'gymnasium.wrappers:FilterObservation{"filter_keys": ["image", "direction"]}'
FLAT = (
    'PyFlyt.gym_envs:FlattenWaypointEnv{"context_length": 2}',
    'gymnasium.wrappers:DtypeObservation{"dtype": "float32"}',
)
CASES = {
    "gymnasium_robotics:PointMaze_UMaze-v3": ((), {"achieved_goal", "desired_goal", "observation"}, "success"),
    "gymnasium_robotics:AdroitHandDoor-v1": ((), {"obs"}, "success"),
    "shimmy:dm_control/cartpole-balance-v0": ((), {"position", "velocity"}, "timestep.discount"),
    "minigrid:MiniGrid-Empty-5x5-v0": ((KEPT,), {"image", "direction"}, None),
    "highway_env:parking-v0": ((), {"achieved_goal", "desired_goal", "observation"}, "is_success"),
    "myosuite:myoElbowPose1D6MRandom-v0": (FLAT[1:], {"obs"}, None),
    "PyFlyt.gym_envs:PyFlyt/QuadX-Waypoints-v4": (FLAT, {"obs"}, "collision"),
}
pytestmark = pytest.mark.filterwarnings("ignore")
"""The packages warn of each other, and of the missing display."""


def require(env_id: str) -> None:
    pytest.importorskip("dm_control" if "dm_control" in env_id else env_id.partition(":")[0])


@pytest.mark.parametrize("env_id", CASES)
def test_environments_are_made_and_stepped(env_id):
    require(env_id)
    wrappers, parts, reported = CASES[env_id]
    made = Environment(env_id, env_wrapper=wrappers)
    with contextlib.closing(make_env(made)) as env:
        assert {spec.name for spec in Spaces.of(env).observation} == parts
        env.action_space.seed(0)
        steps = list(play(lambda _: env.action_space.sample(), env, seed=0, longest=5))
        assert reported is None or reported in steps[-1].info
    with contextlib.closing(make_vector_env(made, 2)) as envs:
        envs.reset(seed=0)
        actions = np.stack([env.action_space.sample() for _ in range(2)])
        assert np.isfinite(envs.step(actions)[1]).all()


def test_a_text_is_named_with_the_wrapper_that_leaves_it_out():
    require("minigrid:")
    with pytest.raises(UserError, match=r"MissionSpace.* of 'mission' isn't supported.*FilterObservation"):
        make_env("minigrid:MiniGrid-Empty-5x5-v0")


def test_agents_of_pettingzoo_begin_again_after_their_world_has_ended():
    """A world of eight pursuers ends after five steps, all of them truncated; the next step resets it."""
    pursuit, supersuit = pytest.importorskip("pettingzoo.sisl.pursuit_v5"), pytest.importorskip("supersuit")

    def stacked(**arguments):
        return supersuit.frame_stack_v1(pursuit.parallel_env(**arguments), 2)

    with contextlib.closing(Parallel(stacked).rows(16, max_cycles=5)) as envs:
        envs.reset(seed=0)
        ended = [(step := envs.step(np.zeros(16, int)))[2] | step[3] for _ in range(7)]
    assert [each.all() for each in ended] == [False] * 4 + [True] + [False] * 2
    assert not any(each.any() for each in (*ended[:4], *ended[5:]))
