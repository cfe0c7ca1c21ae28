import gymnasium as gym
import numpy as np
import pytest

from trpo_tf.envs.spaces import observation_kinds, observation_spec
from trpo_tf.errors import UserError
from trpo_tf.policies.encoders import make_encoder
from trpo_tf.policies.running_stats import Normalizer


def encode(space, observations, *, mean=0.0, scale=1.0, normalize=True):
    specs = observation_spec(space)
    encoder = make_encoder(observation_kinds(space), specs, normalize=normalize)
    statistics = Normalizer(*(np.full(encoder.statistics, value, np.float32) for value in (mean, scale)))
    encoded = encoder(statistics, np.asarray(observations, specs[0].dtype)).numpy()
    assert encoded.shape[1] == encoder.width
    return encoded


def test_a_choice_is_one_hot_counted_from_its_start():
    np.testing.assert_array_equal(encode(gym.spaces.Discrete(3, start=5), [5, 7]), [[1, 0, 0], [0, 0, 1]])


def test_several_choices_stand_side_by_side():
    space = gym.spaces.MultiDiscrete([2, 3], start=[0, 1])
    np.testing.assert_array_equal(encode(space, [[1, 1], [0, 3]]), [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]])


def test_bits_are_numbers_and_not_normalised():
    space = gym.spaces.MultiBinary([2, 2])
    np.testing.assert_array_equal(encode(space, [[[0, 1], [1, 1]]], mean=9.0), [[0, 1, 1, 1]])


def test_boxes_of_any_shape_are_flattened_and_normalised():
    space = gym.spaces.Box(-np.inf, np.inf, (2, 2), np.float64)
    observations = [[[1.0, 2.0], [3.0, 1e6]]]
    np.testing.assert_array_equal(encode(space, observations, mean=1.0, scale=2.0), [[0, 2, 4, 10]])
    np.testing.assert_array_equal(encode(space, observations, normalize=False), [[1, 2, 3, 1e6]])


def test_a_box_without_dimensions_is_one_number():
    assert encode(gym.spaces.Box(0, 9, (), np.float32), [3.0, 4.0], normalize=False).tolist() == [[3.0], [4.0]]


@pytest.mark.parametrize(
    ("space", "is_flattened"),
    [
        (gym.spaces.Box(0, 255, (4, 84, 84, 1), np.uint8), True),
        (gym.spaces.Box(0, 1, (84, 84, 3), np.float32), True),
        (gym.spaces.Box(0, 255, (84, 84, 3), np.uint8), False),
        (gym.spaces.Box(0, 1, (1080,), np.float32), False),
        (gym.spaces.Box(0, 1, (3, 3), np.float32), False),
    ],
    ids=["stack of bytes", "floats", "image", "rays", "matrix"],
)
def test_what_looks_like_an_image_and_is_not_taken_as_one_is_found(space, is_flattened):
    encoder = make_encoder(observation_kinds(space), observation_spec(space), normalize=True)
    assert [spec.shape for spec in encoder.flattened] == ([space.shape] if is_flattened else [])


@pytest.mark.parametrize("space", [gym.spaces.Text(3), gym.spaces.Dict({"a": gym.spaces.Text(3)})])
def test_other_spaces_are_refused_by_name(space):
    with pytest.raises(UserError, match=r"observation space .* isn't supported"):
        observation_spec(space)
