"""Register Atari's games, and apply their standard preprocessing."""

from typing import Any

import gymnasium as gym
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, StickyAction

from trpo_tf.errors import UserError
from trpo_tf.serving.errors import install

# Gymnasium's sticky actions stand in for ALE's own: the same process, frame by frame, but it draws from the
# environment's generator, and its last action can be saved and restored, which ALE leaves out of the emulator's state.
ATARI_ARGUMENTS: dict[str, Any] = {"frameskip": 1, "repeat_action_probability": 0.0}


_STICKINESS = 0.25


def is_atari(env_id: str) -> bool:
    """Return whether an id is in Atari's namespace, `ALE/`."""
    return env_id.removeprefix("ale_py:").startswith("ALE/")


def register_atari(env_id: str) -> None:
    """Register Atari's ids with Gymnasium. Raises `UserError` if ALE or OpenCV is not installed."""
    try:
        import ale_py
        import cv2  # noqa: F401 (AtariPreprocessing imports it when it is made)
    except ImportError as error:
        needs = f"Atari games need ale-py and OpenCV; {install('atari')}"
        raise UserError(f"environment {env_id!r} can't be made: {needs}") from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gym.register_envs(ale_py)


def preprocess_atari(env: gym.Env[Any, Any]) -> FrameStackObservation[Any, Any, Any]:
    """Wrap an Atari game: observations uint8 [4, 84, 84], one action for four frames (Machado et al. 2018).

    Raises `UserError` for a game without a NOOP action.
    """
    inner: Any = env.unwrapped
    if inner.get_action_meanings()[0] != "NOOP":
        raise UserError(f"{inner.spec.id} isn't supported: it has no NOOP action, with which Atari's episodes start")
    env = StickyAction(env, _STICKINESS)
    env = AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84, grayscale_obs=True, scale_obs=False)
    return FrameStackObservation(env, 4)
