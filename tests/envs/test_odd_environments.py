"""Environments that do what environments should not: they train all the same, or one line says what is wrong."""

import calendar
import collections
import contextlib
import decimal
import fractions
import itertools
import json
import os
import sys
import types
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from tests.support.agents import Mortal
from tests.support.environments import Walk
from trpo_tf.config.environment import Environment
from trpo_tf.config.settings import VineConfig
from trpo_tf.envs.agents import AgentRows
from trpo_tf.envs.checked import CheckedEnv, are_usable, conforming, plain_reward, unusable
from trpo_tf.envs.make import make_env, register_callable
from trpo_tf.envs.spaces import Spaces, observation_spec
from trpo_tf.envs.vector.backends import make_vector_env
from trpo_tf.envs.vector.vector_env import SyncVectorEnv
from trpo_tf.errors import EnvironmentFailure, UserError
from trpo_tf.evaluation.evaluate import check_spaces
from trpo_tf.export import PolicySpec
from trpo_tf.runs.folder import load_run
from trpo_tf.serving import NoiseSpec
from trpo_tf.training.train import train


class Roaming(Walk):
    """Changes the working directory, reports a number that no float holds, and can't be closed."""

    def step(self, action):
        os.chdir("/")
        *answer, _ = super().step(action)
        return (*answer, {"reward_total": 10**400, "reward_step": 1})

    def close(self):
        raise OSError("the simulator is gone")


@pytest.mark.filterwarnings("ignore:the environment.s close raised OSError. the simulator is gone:UserWarning")
def test_a_run_is_written_where_it_was_asked_for_and_outlives_its_environment(small_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = train(small_config("Roaming-v0", eval_episodes=1), "run", make_env=Roaming, progress=False)
    gym.registry.pop("Roaming-v0")
    assert load_run(tmp_path / "run").summary["trained"]["info"] == {"reward_step": 1.0}
    assert run.folder == tmp_path / "run"


@pytest.mark.parametrize(
    "settings",
    [
        {"num_envs": 4},
        {"num_envs": 2, "shards": 2},
        {"num_envs": 1, "eval_interval": 64, "periodic_eval_episodes": 1},
        {"vine": VineConfig(rollout_states=4), "num_envs": 1, "sampler": "vine"},
    ],
    ids=["one shard", "shards", "evaluation", "vine"],
)
def test_one_object_for_several_environments_is_refused(settings, small_config, tmp_path):
    only = Walk()
    config = small_config("Only-v0", total_steps=300, **settings)
    with pytest.raises(UserError, match="an object that it had returned before"):
        train(config, tmp_path / "run", make_env=lambda: only, progress=False)
    gym.registry.pop("Only-v0")


def _with_one_action_more_each():
    counts = itertools.count(2)

    def make():
        env = Walk()
        env.action_space = gym.spaces.Discrete(next(counts))
        return env

    return make


class Spaceless(gym.Env):
    """Has no spaces."""


UNUSABLE = {
    "environments with different action spaces .*from 0 to .*; all of them must have the same": (
        _with_one_action_more_each()
    ),
    "needs an observation_space of gymnasium.spaces, set in its constructor; it has none": Spaceless,
    "make_env must be a class or function that returns a new environment, not 'CartPole-v1'": "CartPole-v1",
    "make_env must be a class or function that returns a new environment, not <": Walk(),
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_what_makes_no_environments_that_can_be_trained_is_said(reason, small_config, tmp_path):
    with pytest.raises(UserError, match=reason):
        train(small_config("Unusable-v0"), tmp_path / "run", make_env=UNUSABLE[reason], progress=False)
    gym.registry.pop("Unusable-v0", None)
    assert list(tmp_path.iterdir()) == []


def _exit(*_):
    sys.exit("the window was closed")


class ExitingWalk(Walk):
    """Ends its process in its first step."""

    step = _exit


class ExitingWorld(Mortal):
    """Ends its process in its first step."""

    step = _exit


@pytest.mark.parametrize("vector", [lambda: SyncVectorEnv([ExitingWalk()]), lambda: AgentRows([ExitingWorld()])])
def test_an_environment_that_exits_is_one_that_failed(vector):
    made = vector()
    made.reset(seed=0)
    with pytest.raises(EnvironmentFailure, match="the environment's step raised SystemExit: the window was closed"):
        made.step(np.zeros(made.num_envs, np.int64))


def test_a_constructor_that_exits_is_one_that_failed():
    register_callable("Exiting-v0", _exit)
    with pytest.raises(UserError, match="its constructor raised SystemExit: the window was closed"):
        make_env("Exiting-v0")
    gym.registry.pop("Exiting-v0")


class Asserting(Walk):
    """Fails without a message, in a line of its own or below it."""

    def step(self, action):
        raise AssertionError

    def reset(self, **_):
        json.loads("[")


def test_the_line_at_which_an_environment_failed_is_named():
    made = SyncVectorEnv([Asserting()])
    for call, reason in (
        (
            lambda: made.step(np.zeros(1, np.int64)),
            r"Error: raise AssertionError \(.*test_odd_env.*.py, line \d+\)",
        ),
        (made.reset, r"JSONDecodeError: .* \(.*test_odd_environments.py, line \d+\)"),
    ):
        with pytest.raises(EnvironmentFailure, match=reason):
            call()


BROKEN_MODULES = {
    "undefined": r"importing broken raised NameError: name 'undefined' is not defined \(.*broken.py, line 1\)$",
    "def f(:": r"importing broken raised SyntaxError: invalid syntax \(broken.py, line 1\)$",
    "import no_such_package": "No module named 'no_such_package'$",
}


@pytest.mark.parametrize("code", BROKEN_MODULES)
def test_a_module_that_can_not_be_imported_is_named(code, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"environment 'broken:Mine-v0' can't be made: {BROKEN_MODULES[code]}"):
        make_env("broken:Mine-v0")


UNREGISTERED = {
    (
        "room:Heater-v0",
        "class Heater: pass",
    ): r"registers none; let room call gymnasium.register\('Heater-v0', Heater\)",
    ("room:Heater", "gymnasium.register('my/Heated-v0', Room)"): "doesn't exist; room registers my/Heated-v0$",
    ("calendar:Heater-v0", ""): r"calendar is .*/calendar.py, not .*/calendar.py: give yours another name",
    ("numpy:Two-Heaters", ""): r"let a module of yours call gymnasium.register\('Two-Heaters-v0', CLASS\)",
    ("rooms/room.py:Heater-v0", ""): "as in room:Heater-v0, and no file",
    ("Heater-v0", ""): "a module of yours registers it, name that in front: module:Heater-v0",
    ("CartPoll-v1", ""): "Did you mean: `CartPole`",
    ("CartPole-v7", ""): "provides versioned environments",
}


@pytest.mark.parametrize(("env_id", "code"), UNREGISTERED)
def test_an_id_that_is_not_registered_is_told_what_to_do(env_id, code, tmp_path, monkeypatch):
    for name in ("room.py", "calendar.py"):
        (tmp_path / name).write_text(f"import gymnasium\nclass Room: pass\n{code}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "calendar", calendar)  # Python's own, which programs import before
    monkeypatch.delitem(sys.modules, "room", raising=False)

    with pytest.raises(UserError, match=UNREGISTERED[env_id, code]):
        make_env(env_id)
    gym.registry.pop("my/Heated-v0", None)


class Undrawn(Walk):
    """Names a render mode that its constructor does not take."""

    metadata: ClassVar = {"render_modes": ["rgb_array"]}


def test_an_environment_that_can_not_be_drawn_is_told_how():
    gym.register("Undrawn-v0", Undrawn)
    with pytest.raises(UserError, match="to be drawn, an environment takes render_mode='rgb_array'"):
        make_env("Undrawn-v0", render_mode="rgb_array")
    gym.registry.pop("Undrawn-v0")


def test_an_environment_of_the_former_gym_is_referred_to_shimmy(monkeypatch):
    former = types.ModuleType("gym.envs.registration")
    former.registry = {"Crafter-v1": None}
    monkeypatch.setitem(sys.modules, former.__name__, former)
    with pytest.raises(UserError, match=r"registered with the package gym.*shimmy:GymV26.*\"tests:Crafter-v1\"}'"):
        make_env("tests:Crafter-v1")


def test_parts_of_a_reward_are_to_be_weighed():
    with pytest.raises(EnvironmentFailure, match="weigh its parts by a wrapper"):
        plain_reward(np.ones(2))


class ResetInTheSameStep(CartPoleVectorEnv):
    """A vector form that the sampler can't step."""

    metadata: ClassVar = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}


def test_a_vector_form_that_does_not_reset_in_the_next_step_is_left_alone():
    gym.register("SameStep-v0", Walk, vector_entry_point=ResetInTheSameStep)
    with contextlib.closing(make_vector_env("SameStep-v0", 2)) as made:
        assert isinstance(made, SyncVectorEnv)
    gym.registry.pop("SameStep-v0")


def test_a_vector_form_alone_is_refused():
    gym.register("Alone-v0", vector_entry_point=CartPoleVectorEnv)
    with pytest.raises(UserError, match=r"has a vector form alone.*register it with an entry_point too"):
        make_env("Alone-v0")
    gym.registry.pop("Alone-v0")


def test_a_policy_of_other_ranges_is_refused():
    def check(policy, env):
        spaces = Spaces.of(policy)
        check_spaces(PolicySpec(spaces.observation, spaces.action, NoiseSpec("gumbel", (2,))), env, "the other")

    check(Walk(), Walk())
    with pytest.raises(UserError, match="the policy has action from 0 to 1, the other from 3 to 4"):
        check(Walk(), Walk(start=3))
    cells = Walk()
    cells.observation_space = gym.spaces.Discrete(16)
    more = Walk()
    more.observation_space = gym.spaces.Discrete(64)
    with pytest.raises(UserError, match="the policy has obs from 0 to 15, the other from 0 to 63"):
        check(cells, more)


class Former(Walk):
    """Answers `reset` and `step` as it is told."""

    def __init__(self, reset, step=None):
        super().__init__()
        self._reset_answer, self._step_answer = reset, step

    def reset(self, **_):
        return self._reset_answer

    def step(self, action):
        _observation, _reward = self._step_answer  # as one of Gymnasium's wrappers unpacks it


SEEN = np.zeros(2, np.float32)


@pytest.mark.parametrize(
    "answer", [SEEN, (SEEN, 0.0), list(SEEN), {"a": SEEN, "b": SEEN}, None, (SEEN, {}, {})], ids=str
)
def test_a_reset_without_info_is_named(answer):
    env = Former(answer)
    for made in (CheckedEnv(env, observation_spec(env.observation_space), "Former"), SyncVectorEnv([env])):
        with pytest.raises(EnvironmentFailure, match="reset did not return a pair of observation and info"):
            made.reset(seed=0)


def test_a_step_of_the_former_gym_is_named():
    env = Former((np.zeros(Walk().observation_space.shape, np.float32), None), (SEEN, 0.0, False))
    made = SyncVectorEnv([env])
    made.reset(seed=0)
    with pytest.raises(EnvironmentFailure, match=r"too many values .*a step returns five values: observation"):
        made.step(np.zeros(1, np.int64))


class Resetting(Walk):
    """Resets itself in the last step, as vector environments do."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if terminated or truncated:
            info["terminal_observation"] = observation
            observation, _ = self.reset()
        return observation, reward, terminated, truncated, info


def test_an_environment_that_resets_itself_is_told_so():
    made = SyncVectorEnv([Resetting(length=2)])
    made.reset(seed=0)
    made.step(np.ones(1, np.int64))
    with pytest.warns(UserWarning, match="seems to reset itself .* its info has 'terminal_observation'"):
        made.step(np.ones(1, np.int64))


def test_numbers_of_any_type_are_rewards():
    assert [plain_reward(each) for each in (decimal.Decimal("1.5"), fractions.Fraction(1, 4))] == [1.5, 0.25]
    with pytest.raises(EnvironmentFailure, match="no number"):
        plain_reward(10**400)


def test_single_integers_of_any_type_are_choices():
    choice = observation_spec(gym.spaces.Discrete(3))
    assert conforming(np.array(2, np.int32), choice).dtype == np.int64
    with pytest.raises(EnvironmentFailure, match="float32"):
        conforming(np.array(2, np.float32), choice)


class Unmade(Walk):
    """Has an `unwrapped` that is another object, as wrappers of other packages do."""

    unwrapped = Walk()


def test_the_line_of_gymnasium_stands_for_an_empty_message():
    register_callable("Unmade-v0", Unmade)
    with pytest.raises(UserError, match=r"raised AssertionError: assert env.spec is not None \("):
        make_env("Unmade-v0")
    gym.registry.pop("Unmade-v0")


def test_tuples_and_lists_stand_for_each_other():
    numbers = observation_spec(gym.spaces.Box(-1, 1, (2,)))
    pair = collections.namedtuple("pair", "angle speed")
    for given in ((0.5, 1), pair(0.5, 1)):
        np.testing.assert_array_equal(conforming(given, numbers), np.float32([0.5, 1]))
    several = observation_spec(gym.spaces.Tuple((gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2,)))))
    parts = conforming([2, SEEN], several)
    assert [part.tolist() for part in parts.values()] == [2, [0, 0]]


def test_floats_of_another_precision_are_told_how_to_convert_them():
    """The type of a Box is float32 by default, that of NumPy's floats float64."""
    box = gym.spaces.Box(-1, 1, (2,))
    with pytest.raises(EnvironmentFailure, match=r"or by env_wrapper='gymnasium.wrappers:Dtype.*float32\"}'$"):
        conforming(np.zeros(2), observation_spec(box))
    with pytest.raises(EnvironmentFailure, match=r"\.astype\('float32'\)$"):
        conforming({"a": np.zeros(2), "b": SEEN}, observation_spec(gym.spaces.Dict(a=box, b=box)))
    with pytest.raises(EnvironmentFailure, match=r"masked array .*\)$"):
        conforming(np.ma.masked_array(SEEN, [0, 1]), observation_spec(box))
    register_callable("Wide-v0", lambda: Former((np.zeros(2), {})))
    made = make_env(Environment("Wide-v0", env_wrapper=('gymnasium.wrappers:DtypeObservation{"dtype": "float32"}',)))
    assert made.reset()[0].dtype == np.float32
    gym.registry.pop("Wide-v0")


def test_an_observation_that_float32_can_not_hold_is_named():
    space, seen = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64), np.array([0.0, -1e300])
    with pytest.raises(EnvironmentFailure, match=r"too large for float32, in which policies compute: obs is 1e\+300"):
        conforming(seen, observation_spec(space))
    batch, rewards = np.stack([np.zeros((1, 2)), seen[np.newaxis]]), np.zeros((1, 1))
    assert are_usable(batch[:1], rewards)
    assert not are_usable(batch, rewards)
    assert "step 1 of the iteration, environment 1 of 1" in str(unusable(batch, rewards))
    assert "obs[1] is 1e+300" in str(unusable(batch, rewards))
