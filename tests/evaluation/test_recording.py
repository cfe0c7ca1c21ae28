"""Videos of episodes: what is in them, and what is said when there can be none."""

import io
import json
import os
import re
import subprocess
from pathlib import Path

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from PIL import Image

from tests.support.paths import ROOT
from tests.support.processes import command_line
from tests.support.processes.full_disk import largest_file
from trpo_tf import serving
from trpo_tf.cli import main as cli
from trpo_tf.errors import UserError
from trpo_tf.evaluation.video import record as video_of
from trpo_tf.serving.bundle.files import FileEntry
from trpo_tf.serving.bundle.manifest import read_manifest


@pytest.fixture(scope="module")
def cart(small_config, tmp_path_factory):
    from trpo_tf.training.train import train

    return train(small_config("CartPole-v1"), tmp_path_factory.mktemp("runs") / "cart")


@pytest.fixture(scope="module")
def pendulum(small_config, tmp_path_factory):
    from trpo_tf.training.train import train

    return train(small_config("InvertedPendulum-v5"), tmp_path_factory.mktemp("runs") / "pendulum")


@pytest.fixture(scope="module")
def cart_bundle(cart, tmp_path_factory):
    """A bundle with an episode in it."""
    from trpo_tf.exporting.run_bundle import export_run

    folder = tmp_path_factory.mktemp("bundles") / "cart"
    export_run(cart, folder, targets=["onnx"], episodes=1, with_episode=True)
    return folder


def record(*arguments, **environment: str) -> subprocess.CompletedProcess:
    """By a process, as MuJoCo and TensorFlow ask for."""
    kept = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return command_line.run(ROOT, "record", *arguments, environment={**kept, **environment})


def mp4_frames(video: bytes, folder: Path) -> list[np.ndarray]:
    path = folder / "episode.mp4"
    path.write_bytes(video)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, "-f", "image2pipe", "-c:v", "ppm", "-"]
    pictures = subprocess.run(command, capture_output=True, check=True).stdout
    header = pictures[: pictures.index(b"255\n") + 4]
    return [np.asarray(Image.open(io.BytesIO(header + picture))) for picture in pictures.split(header)[1:]]


def test_a_bundle_s_episode_shows_what_the_policy_does(cart_bundle, tmp_path):
    done = record(cart_bundle, "--out", tmp_path / "episode.mp4", "--seed", "3", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    # What the video shows is what the policy does in this episode: the return is the same.
    import gymnasium as gym

    policy, env, total = serving.load(cart_bundle), gym.make("CartPole-v1"), 0.0
    observation, over = env.reset(seed=3)[0], False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(policy.act(observation))
        total, over = total + float(reward), terminated or truncated
    assert (told["episode_return"], told["steps"], told["is_whole"]) == (total, total, True)
    frames = mp4_frames((tmp_path / "episode.mp4").read_bytes(), tmp_path)
    assert len(frames) == told["frames"] == -(-told["steps"] // 2)  # 50 a second, every other one is kept
    assert told["frames_per_second"] == 25
    assert frames[0].shape == (320, 480, 3)
    assert len({frame.tobytes() for frame in frames}) > 0.8 * len(frames)  # it moves


def test_a_gif_of_a_run_is_cut_and_small(cart, tmp_path):
    out = tmp_path / "episode.gif"
    done = record(cart.folder, "--out", out, "--max-seconds", "0.1", "--width", "200", "--stochastic")
    assert done.returncode == 0, done.stderr
    assert re.search(r"0\.1 s, [\d,]+ bytes; return 5\.0 so far, after 5 steps", done.stdout), done.stdout
    with Image.open(out) as image:
        assert (image.format, image.n_frames, image.size) == ("GIF", 3, (200, 134))
        assert image.info["duration"] == 40
        assert image.info["loop"] == 0


def test_the_same_seed_gives_the_same_bytes(cart_bundle, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert record(cart_bundle, "--out", tmp_path / f"{name}.mp4", "--seed", seed).returncode == 0
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("library", ["egl", "osmesa"])
def test_mujoco_is_drawn_without_a_display(library, pendulum):
    from trpo_tf.evaluation.recorder import record_apart
    from trpo_tf.exporting.in_process import converted

    environment = {name: os.environ.pop(name, None) for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")}
    os.environ["MUJOCO_GL"] = library
    try:
        made = record_apart(*converted(pendulum.policy, "p"), "InvertedPendulum-v5", "gif", max_seconds=0.2, width=100)
    finally:
        del os.environ["MUJOCO_GL"]
        os.environ.update({name: value for name, value in environment.items() if value is not None})
    with Image.open(io.BytesIO(made.video)) as image:
        assert image.size == (100, 100)
        assert image.convert("RGB").getextrema() != ((0, 0), (0, 0), (0, 0))


def test_what_cannot_be_drawn_is_one_line(bundle, pendulum, tmp_path, cart_bundle):
    out = tmp_path / "episode.gif"
    for done, reason in (
        (
            record(bundle, "--out", out),
            "tests.support.environments:Walk-v0 can't be recorded: its metadata has no render mode",
        ),
        (record(pendulum.folder, "--out", out, MUJOCO_GL="glfw"), "InvertedPendulum-v5 can't be rendered here"),
        (record(cart_bundle, "--out", tmp_path / "a.avi"), "a recording is mp4 or gif, not 'avi'"),
        (record(cart_bundle, "--out", out, "--max-seconds", "0"), "max_seconds above 0"),
        (record(cart_bundle, "--out", out, "--env-id", "Pendulum-v1"), "the policy observes obs float32"),
        (record(tmp_path, "--out", out), "is not a run folder"),
    ):
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[-1].startswith("error: ")
        assert reason in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert not out.exists()


class Drawn(CartPoleEnv):
    """CartPole whose frames are what a test wants."""

    def __init__(self, frame, render_mode=None):
        super().__init__()
        self.render_mode, self._frame = render_mode, frame

    def render(self):
        return self._frame


def test_frames_with_an_alpha_channel_are_recorded_and_others_named(cart_bundle):
    policy, opaque = serving.load(cart_bundle), np.full((40, 60, 4), 90, np.uint8)

    def video(frame):
        gym.register("Drawn-v0", Drawn, kwargs={"frame": frame})
        try:
            return video_of(policy, "Drawn-v0", "gif", max_seconds=0.1).video
        finally:
            del gym.registry["Drawn-v0"]

    assert video(opaque) == video(opaque[..., :3])
    for frame, given in ((opaque / 255, r"float64\[40, 60, 4\]"), ([opaque], "of list"), (None, "of NoneType")):
        with pytest.raises(UserError, match=f"Drawn-v0 can't be recorded: a frame is {given}, not"):
            video(frame)


def test_an_exported_episode_is_listed_and_verified(cart_bundle):
    content = (cart_bundle / "episode.mp4").read_bytes()
    assert read_manifest(cart_bundle).files["episode.mp4"] == FileEntry.of(content)
    assert len(content) < 200_000
    serving.verify.verify(cart_bundle)


def test_export_takes_the_option():
    assert cli.parse(["export", "run", "--out", "bundle", "--record"]).record is True


def test_a_video_that_does_not_fit_on_the_disk_is_no_file(cart, tmp_path):
    """The encoder is a process of its own, which leaves a file that is cut off; a limit of sizes is the full disk."""
    with largest_file(2000):
        done = record(cart.folder, "--out", tmp_path / "cart.mp4")
    assert done.returncode == 2
    assert re.fullmatch("error: .*(File too large|is the disk of .* full).*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_policy_with_memory_is_recorded_as_its_session_plays(small_config, tmp_path):
    from trpo_tf.exporting.run_bundle import export_run
    from trpo_tf.training.train import train

    run = train(small_config("CartPole-v1", history=3), tmp_path / "run")
    export_run(run, tmp_path / "bundle", targets=["onnx"], episodes=1)
    done = record(tmp_path / "bundle", "--out", tmp_path / "episode.gif", "--seed", "3", "--json", "--width", "100")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    session, env, total = serving.load(tmp_path / "bundle").start(), gym.make("CartPole-v1"), 0.0
    observation, over = env.reset(seed=3)[0], False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(session.act(observation))
        total, over = total + float(reward), terminated or truncated
    assert (told["episode_return"], told["is_whole"]) == (total, True)
    assert serving.load(tmp_path / "bundle").manifest.state
