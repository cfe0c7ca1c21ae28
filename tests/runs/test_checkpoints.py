"""Checkpoints are complete, and a damaged one is never used."""

import dataclasses
import warnings
import zipfile

import numpy as np
import pytest

from trpo_tf.errors import UserError
from trpo_tf.estimation.critic import AdamState
from trpo_tf.learning.training_state import Best, TrainingState
from trpo_tf.policies.running_stats import Moments
from trpo_tf.runs.checkpoints import KEPT, load_checkpoint, pack, save_checkpoint, unpack
from trpo_tf.sampling.batch import Batch


def batch_of(rng: np.random.Generator) -> Batch:
    flags, numbers = (lambda: rng.normal(size=(2, 4)) > 0), (lambda: rng.normal(size=(2, 4)))
    return Batch(rng.normal(size=(3, 4, 5)), numbers(), numbers(), flags(), flags(), numbers())


def state(number: int = 1, seed: int = 0) -> TrainingState:
    """A state in which no two values are alike."""
    rng = np.random.default_rng(seed)
    vector = lambda n: rng.standard_normal(n).astype(np.float32)  # noqa: E731
    moments = lambda *shape: Moments(rng.normal(size=shape), rng.uniform(size=shape), np.asarray(rng.uniform()))  # noqa: E731
    return TrainingState(
        theta=vector(7),
        value_theta=vector(5),
        adam=AdamState(np.asarray(np.float32(3)), vector(5), vector(5)),
        observation_moments=moments(2),
        return_moments=moments(),
        carried_returns=rng.normal(size=4),
        adapted=np.float32(0.1),
        earlier=(batch_of(rng), batch_of(rng)),
        best=Best(vector(7), moments(2), 0.1 + 0.7, 9),
        recent_returns=(0.1, -1e-300),
        recent_lengths=(5, 7),
        iteration=11,
        steps=13,
        eval_steps=14,
        episodes=17,
        checkpoint=number,
        steps_at_checkpoint=12,
        seconds=0.1 + 0.2,
    )


def same(one: TrainingState, other: TrainingState) -> bool:
    a, b = one.to_arrays(), other.to_arrays()
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes() for k in a
    )


def save(folder, *numbers):
    return [save_checkpoint(folder, state(number, seed=number)) for number in numbers]


def test_a_state_comes_back_to_the_bit(tmp_path):
    save_checkpoint(tmp_path, state())
    loaded = load_checkpoint(tmp_path)
    assert same(loaded, state())
    assert not same(loaded, state(seed=1))
    assert (loaded.recent_returns, loaded.recent_lengths) == ((0.1, -1e-300), (5, 7))
    assert loaded.seconds == 0.1 + 0.2
    assert type(loaded.iteration) is int
    parts = {"arm": np.zeros((3, 4)), "eye": np.ones((3, 4, 2), np.uint8)}
    (batch, _) = state().earlier
    several = dataclasses.replace(state(number=2), earlier=(batch._replace(observation=parts),))
    save_checkpoint(tmp_path, several)
    assert same(load_checkpoint(tmp_path), several)
    assert load_checkpoint(tmp_path).earlier[0].observation.keys() == parts.keys()


def test_every_field_is_saved(tmp_path):
    save_checkpoint(tmp_path, state())
    loaded = load_checkpoint(tmp_path)
    for name in state().__dataclass_fields__:
        np.testing.assert_equal(getattr(loaded, name), getattr(state(), name), err_msg=name)


def test_there_is_no_pickle_in_the_archive(tmp_path):
    (path,) = save(tmp_path, 1)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            assert name.endswith(".npy")
            assert b"'descr': '|O'" not in archive.read(name)[:200]


def test_pickle_is_neither_written_nor_read(tmp_path):
    objects = np.array([{}], object)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        pack({"theta": objects})
    np.savez(tmp_path / "objects.npz", theta=objects)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        unpack((tmp_path / "objects.npz").read_bytes())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, truncate, empty])
def test_a_damaged_checkpoint_is_detected_and_the_one_before_is_used(tmp_path, damage):
    *_, last = save(tmp_path, 1, 2, 3)
    damage(last)
    with pytest.warns(UserWarning, match=f"checkpoint {last.name} is damaged; using the one before it"):
        assert same(load_checkpoint(tmp_path), state(2, seed=2))


def test_two_damaged_checkpoints_are_both_told_of(tmp_path):
    _, second, third = save(tmp_path, 1, 2, 3)
    flip(second)
    flip(third)
    with pytest.warns(UserWarning, match="damaged") as told:
        assert load_checkpoint(tmp_path).checkpoint == 1
    assert len(told) == 2


def test_a_sound_checkpoint_is_used_without_a_word(tmp_path):
    first, _ = save(tmp_path, 1, 2)
    flip(first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_checkpoint(tmp_path).checkpoint == 2


def test_training_goes_on_beside_a_damaged_checkpoint_of_the_same_number(tmp_path):
    _, damaged = save(tmp_path, 1, 2)
    flip(damaged)
    save_checkpoint(tmp_path, state(2, seed=99))
    save(tmp_path, 3)
    assert load_checkpoint(tmp_path).checkpoint == 3


def test_with_none_left_the_user_is_told(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint that can be used; train again"):
        load_checkpoint(tmp_path)
    (only,) = save(tmp_path, 1)
    flip(only)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(tmp_path)


def test_only_the_last_few_are_kept(tmp_path):
    save(tmp_path, *range(8, 13))  # 9 to 10 is where names without leading zeros would sort wrongly
    kept = sorted(path.name[:6] for path in tmp_path.iterdir())
    assert kept == ["000010", "000011", "000012"]
    assert len(kept) == KEPT


def test_leftovers_of_a_killed_write_are_ignored(tmp_path):
    (path,) = save(tmp_path, 1)
    (tmp_path / f".{path.name.replace('000001', '000002')}-k3x_9z").write_bytes(b"half")
    (tmp_path / "notes.npz").write_bytes(b"someone else's")
    assert load_checkpoint(tmp_path).checkpoint == 1
    save(tmp_path, 2, 3, 4, 5)
    assert (tmp_path / "notes.npz").exists()


def test_who_may_read_it_is_the_user_s_choice(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    (path,) = save(tmp_path, 1)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failing_write_leaves_nothing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    save(tmp_path, 1)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 1
