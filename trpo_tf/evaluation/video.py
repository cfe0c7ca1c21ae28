"""Record a policy's episode as a small MP4 or GIF video."""

import ctypes.util
import functools
import io
import itertools
import math
import os
import sys
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
from trpo_tf.errors import ENVIRONMENT_ERRORS, UserError
from trpo_tf.evaluation.evaluate import FIRST_SEED, check_spaces, play
from trpo_tf.serving import Policy
from trpo_tf.serving.errors import install

KINDS = ("mp4", "gif")

_MOST_FRAMES_PER_SECOND = 30
_DEFAULT_FRAMES_PER_SECOND = 30
_OF_MUJOCO = "; without a display MuJoCo needs libegl1 and libgl1-mesa-dri, or libosmesa6, and MUJOCO_GL=egl or osmesa"
_ATARI_FRAMES_PER_SECOND = 15
"""The game shows 60 frames a second, and the policy acts at every fourth."""


@dataclass(frozen=True)
class Recording:
    """A video, and statistics of the recorded episode.

    Attributes:
        video: the file's bytes.
        frames: number of frames.
        frames_per_second: speed at which they are shown.
        steps: number of recorded environment steps.
        episode_return: undiscounted return of these steps.
        is_whole: whether the episode ended, rather than being cut.
    """

    video: bytes
    frames: int
    frames_per_second: float
    steps: int
    episode_return: float
    is_whole: bool

    def to_dict(self) -> dict[str, Any]:
        """Return all fields except the video, as plain values."""
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

    MuJoCo chooses its renderer when it is imported. Mesa, which renders without a display, contains an LLVM that
    crashes next to TensorFlow's. A process that has imported one of them uses `trpo_tf.evaluation.recorder` instead.

    Args:
        policy: the policy that acts.
        environment: the environment.
        kind: `mp4` or `gif`.
        seed: seed of the environment, and of sampled actions.
        deterministic: act by the distribution's mode.
        width: largest width of the video, in pixels.
        max_seconds: largest length of the video; the rest of the episode is cut.

    Raises:
        UserError: an argument is wrong, the environment can't be rendered here, or its spaces are not the policy's.
        EnvironmentFailure: the environment raised an exception, or gave a value that is not finite.
    """
    if kind not in KINDS:
        raise UserError(f"a recording is mp4 or gif, not {kind!r}; give a file whose name ends in .mp4 or .gif")
    if width < 16 or not 0 < max_seconds < math.inf:
        raise UserError("width must be 16 at least, max_seconds above 0 and finite")
    _choose_display()
    env_id = str(environment)
    timed, masked = observes_time(policy.manifest.observation), policy.manifest.mask is not None
    env = _rendering(environment, time_feature=timed, masked=masked)
    try:
        check_spaces(policy.manifest, env, env_id)
        rate = _frames_per_second(env, env_id)
        stride = math.ceil(rate / _MOST_FRAMES_PER_SECOND)
        most = max(1, round(max_seconds * rate))
        rewards: list[float] = []
        act = functools.partial(policy.start().act, deterministic=deterministic, rng=np.random.default_rng(seed))
        playing = play(act, env, seed)

        def frames() -> Iterator[Image.Image]:
            for step, played in enumerate(itertools.islice(playing, most)):
                rewards.append(played.reward)
                if step % stride == 0:
                    yield _scaled(_frame(env, env_id), width)

        video, count = (_mp4 if kind == "mp4" else _gif)(frames(), rate / stride)
        is_whole = next(playing, None) is None
    finally:
        env.close()
    return Recording(video, count, rate / stride, len(rewards), sum(rewards), is_whole)


def best_kind() -> str:
    """Return `mp4`, which is several times smaller, if it can be encoded here; otherwise `gif`."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        return "gif"
    return "mp4"


def _choose_display() -> None:
    """Choose renderers that need no display, if there is none; variables that the user has set stay."""
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("MUJOCO_GL", "egl" if ctypes.util.find_library("EGL") else "osmesa")


def _rendering(environment: str | Environment, *, time_feature: bool, masked: bool) -> gym.Env[Any, Any]:
    """Make the environment in its render mode `rgb_array`. Raises `UserError` if it has none."""
    plain = make_env(environment, masked=masked)
    modes: Sequence[str] = plain.metadata.get("render_modes") or ()
    plain.close()
    if "rgb_array" not in modes:
        raise UserError(f"{environment} can't be recorded: its metadata has no render mode 'rgb_array'")
    return make_env(environment, time_feature=time_feature, masked=masked, render_mode="rgb_array")


def _frames_per_second(env: gym.Env[Any, Any], env_id: str) -> float:
    if is_atari(env_id):
        return _ATARI_FRAMES_PER_SECOND
    rate = float(env.metadata.get("render_fps") or _DEFAULT_FRAMES_PER_SECOND)
    return rate if 0 < rate < math.inf else _DEFAULT_FRAMES_PER_SECOND


def _frame(env: gym.Env[Any, Any], env_id: str) -> Image.Image:
    """Render the environment's present state. Raises `UserError` if it can't be rendered here."""
    try:
        pixels = env.render()
    except ENVIRONMENT_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        hint = _OF_MUJOCO if "mujoco" in sys.modules else ""
        raise UserError(f"{env_id} can't be rendered here ({reason}){hint}") from error
    if not isinstance(pixels, np.ndarray):
        raise UserError(f"{env_id} can't be recorded: a frame is of {type(pixels).__name__}, not an array")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        given = f"{pixels.dtype}{list(pixels.shape)}"
        raise UserError(f"{env_id} can't be recorded: a frame is {given}, not uint8 [height, width, 3]")
    return Image.fromarray(np.ascontiguousarray(pixels[..., :3]))  # PyBullet's have an alpha channel


def _scaled(frame: Image.Image, width: int) -> Image.Image:
    """Shrink a frame to at most `width` pixels, and make both sides even, as H.264 requires."""
    scale = min(1.0, width / frame.width)
    size = tuple(max(2, 2 * round(side * scale / 2)) for side in frame.size)
    return frame if size == frame.size else frame.resize(size, Image.Resampling.LANCZOS)  # type: ignore[arg-type]


def _mp4(frames: Iterator[Image.Image], rate: float) -> tuple[bytes, int]:
    """Return the frames as an H.264 video that every browser plays, and their number."""
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
    """Return the number of readable frames, 0 for a truncated file.

    It replaces the encoder's exit status, which is not known here.
    """
    import imageio_ffmpeg

    try:
        return imageio_ffmpeg.count_frames_and_secs(str(video))[0]  # type: ignore[no-any-return]
    except (RuntimeError, OSError):
        return 0


def _gif(frames: Iterator[Image.Image], rate: float) -> tuple[bytes, int]:
    """Return the frames as a GIF that repeats for ever, and their number."""
    # One palette for all frames avoids flicker; without dithering, unchanged regions take no space.
    first = next(frames).quantize(128, Image.Quantize.MEDIANCUT)
    rest = [frame.quantize(palette=first, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    milliseconds = max(20, 10 * round(100 / rate))  # GIF counts in hundredths; browsers slow down shorter frames
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0, optimize=False)
    return buffer.getvalue(), 1 + len(rest)
