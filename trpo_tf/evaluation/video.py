"""A policy's episode as a video: rendered by its environment, encoded as MP4 or GIF, small enough to hand around."""

import ctypes.util
import io
import itertools
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from trpo_tf.config.environment import Environment
from trpo_tf.envs.atari import is_atari
from trpo_tf.envs.make import make_env
from trpo_tf.envs.remaining_time import observes_time
from trpo_tf.errors import UserError
from trpo_tf.evaluation.evaluate import FIRST_SEED, check_spaces, play
from trpo_tf.serving import Policy
from trpo_tf.serving.errors import install

KINDS = ("mp4", "gif")

_MOST_FRAMES_PER_SECOND = 30
_DEFAULT_FRAMES_PER_SECOND = 30
_ATARI_FRAMES_PER_SECOND = 15
"""Of sixty that the game shows, the policy acts at every fourth."""


@dataclass(frozen=True)
class Recording:
    """A video, and what is seen in it.

    Attributes:
        video: the file's bytes.
        frames: how many it has.
        frames_per_second: how fast they are shown.
        steps: of the environment, as far as it was recorded.
        episode_return: undiscounted, of these steps.
        is_whole: whether the episode ended, rather than was cut.
    """

    video: bytes
    frames: int
    frames_per_second: float
    steps: int
    episode_return: float
    is_whole: bool

    def to_dict(self) -> dict[str, Any]:
        """All but the video: plain values."""
        return {name: value for name, value in asdict(self).items() if name != "video"}


def record(
    policy: Policy,
    environment: str | Environment,
    kind: str,
    *,
    seed: int = FIRST_SEED,
    deterministic: bool = True,
    width: int = 480,
    max_seconds: float = 20.0,
) -> Recording:
    """Play one episode and record it, in a process that has imported neither MuJoCo nor TensorFlow.

    (What MuJoCo draws with is settled when it is imported; and Mesa, which draws without a display, brings an LLVM that
    TensorFlow's own makes crash. `trpo_tf.evaluation.recorder` does it for a process that has.)

    Args:
        policy: what acts.
        environment: the environment.
        kind: `mp4` or `gif`.
        seed: of the environment, and of samples.
        deterministic: act by the distribution's mode.
        width: of the video in pixels, at most.
        max_seconds: of the video; what comes after is cut.

    Raises:
        UserError: an argument is wrong, the environment can't be rendered here, or is not the policy's.
        EnvironmentFailure: the environment raised an exception, or gave a value that is not finite.
    """
    if kind not in KINDS:
        raise UserError(f"a recording is mp4 or gif, not {kind!r}")
    if width < 16 or not 0 < max_seconds < math.inf:
        raise UserError("width must be 16 at least, max_seconds above 0 and finite")
    _choose_display()
    env_id = str(environment)
    env = _rendering(environment, time_feature=observes_time(policy.manifest.observation))
    try:
        check_spaces(policy, env, env_id)
        rate = _frames_per_second(env, env_id)
        stride = math.ceil(rate / _MOST_FRAMES_PER_SECOND)
        most = max(1, round(max_seconds * rate))
        rewards: list[float] = []
        playing = play(policy, env, seed, deterministic=deterministic, rng=np.random.default_rng(seed))

        def frames() -> Iterator[Image.Image]:
            for step, (reward, _) in enumerate(itertools.islice(playing, most)):
                rewards.append(reward)
                if step % stride == 0:
                    yield _scaled(_frame(env, env_id), width)

        video, count = (_mp4 if kind == "mp4" else _gif)(frames(), rate / stride)
        is_whole = next(playing, None) is None
    finally:
        env.close()
    return Recording(video, count, rate / stride, len(rewards), sum(rewards), is_whole)


def best_kind() -> str:
    """`mp4`, which is several times smaller, if it can be encoded here."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        return "gif"
    return "mp4"


def _choose_display() -> None:
    """How to draw where there is no display; what the user has set stays."""
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("MUJOCO_GL", "egl" if ctypes.util.find_library("EGL") else "osmesa")


def _rendering(environment: str | Environment, *, time_feature: bool) -> gym.Env[Any, Any]:
    """The environment with frames to see. Raises `UserError` if it has none."""
    plain = make_env(environment)
    modes: Sequence[str] = plain.metadata.get("render_modes") or ()
    plain.close()
    if "rgb_array" not in modes:
        raise UserError(f"{environment} can't be recorded: its metadata has no render mode 'rgb_array'")
    return make_env(environment, time_feature=time_feature, render_mode="rgb_array")


def _frames_per_second(env: gym.Env[Any, Any], env_id: str) -> float:
    if is_atari(env_id):
        return _ATARI_FRAMES_PER_SECOND
    rate = float(env.metadata.get("render_fps") or _DEFAULT_FRAMES_PER_SECOND)
    return rate if 0 < rate < math.inf else _DEFAULT_FRAMES_PER_SECOND


def _frame(env: gym.Env[Any, Any], env_id: str) -> Image.Image:
    """What the environment shows now. Raises `UserError` if nothing can be drawn here."""
    try:
        pixels = env.render()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{env_id} can't be rendered here ({reason}); without a display MuJoCo needs libegl1 and libgl1-mesa-dri, "
            "or libosmesa6, and MUJOCO_GL=egl or osmesa"
        ) from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(f"{env_id} can't be recorded: its frames are not uint8 [height, width, 3]")
    return Image.fromarray(pixels)


def _scaled(frame: Image.Image, width: int) -> Image.Image:
    """At most `width` wide, and both sides even, as H.264 wants them."""
    scale = min(1.0, width / frame.width)
    size = tuple(max(2, 2 * round(side * scale / 2)) for side in frame.size)
    return frame if size == frame.size else frame.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]


def _mp4(frames: Iterator[Image.Image], rate: float) -> tuple[bytes, int]:
    """H.264 as every browser plays it, and the number of frames."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError(f"mp4 needs more packages: {install('video')}, or record a .gif") from error
    first = next(frames)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episode.mp4"
        # One thread and no version numbers, so that the same frames give the same bytes.
        options = ["-crf", "26", "-preset", "slow", "-threads", "1", "-movflags", "+faststart", "-fflags", "+bitexact"]
        writer = imageio_ffmpeg.write_frames(
            str(path),
            first.size,
            fps=rate,
            codec="libx264",
            quality=None,
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=[*options, "-flags:v", "+bitexact"],
        )
        writer.send(None)
        count = 0
        for count, frame in enumerate(itertools.chain([first], frames), 1):  # noqa: B007
            writer.send(frame.tobytes())
        writer.close()
        if _frame_count(path) != count:
            raise OSError(f"the video can't be written: is the disk of {folder} full?")
        return path.read_bytes(), count


def _frame_count(video: Path) -> int:
    """Frames that can be read; 0 of a file that was cut off. The encoder's exit status is not known here."""
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.count_frames_and_secs(str(video))[0]  # type: ignore[no-any-return]
    except (RuntimeError, OSError):
        return 0


def _gif(frames: Iterator[Image.Image], rate: float) -> tuple[bytes, int]:
    """A GIF that goes round and round, and the number of frames."""
    # With one palette for all, colours do not flicker; and without dithering, what does not move costs nothing.
    first = next(frames).quantize(128, Image.Quantize.MEDIANCUT)
    rest = [frame.quantize(palette=first, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    milliseconds = max(20, 10 * round(100 / rate))  # in hundredths; browsers slow down what is faster
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0, optimize=False)
    return buffer.getvalue(), 1 + len(rest)
