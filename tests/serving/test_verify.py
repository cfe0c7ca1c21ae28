import io
import json

import numpy as np
import pytest

from trpo_tf.serving import ArraySpec, BundleError
from trpo_tf.serving.bundle.files import FileEntry
from trpo_tf.serving.verify import agree, difference, verify


def replace(bundle, name, content):
    """Put other content in a bundle, and its checksum in the manifest."""
    (bundle / name).write_bytes(content)
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    entry = FileEntry.of(content)
    document["files"][name] = {"size": entry.size, "sha256": entry.sha256}
    path.write_text(json.dumps(document))


def packed(**arrays) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_a_bundle_as_exported_is_verified(bundle, golden):
    result = verify(bundle)
    files = [path for path in bundle.rglob("*") if path.is_file()]
    assert result.files == len(files) - 1
    assert result.golden_cases == len(golden(bundle)["action"])
    assert result.max_difference <= 1e-5


def test_every_file_is_checked(damaged):
    names = json.loads((damaged / "manifest.json").read_text())["files"]
    for name in names:
        path = damaged / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(BundleError, match=f"{path} is not what was exported"):
            verify(damaged)
        path.unlink()
        with pytest.raises(BundleError, match=f"{path} can't be read"):
            verify(damaged)
        path.write_bytes(content)
    verify(damaged)


def test_a_pointer_of_git_lfs_is_told_what_fetches_the_file(damaged):
    (damaged / "policy.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(BundleError, match="git lfs pull"):
        verify(damaged)


@pytest.mark.parametrize("name", ["extra", "saved_model/extra", ".extra"])
def test_a_file_that_is_not_listed_is_refused(damaged, name):
    (damaged / name).write_bytes(b"")
    with pytest.raises(BundleError, match=rf"holds {name}, which manifest\.json does not list"):
        verify(damaged)


def test_another_action_than_the_golden_one_is_found(damaged, golden, discrete):
    cases = golden(discrete)
    cases["action"][-1] = 1 - cases["action"][-1]
    replace(damaged, "golden.npz", packed(**cases))
    with pytest.raises(BundleError, match="differs from its golden cases by 1"):
        verify(damaged)


def test_a_model_of_the_same_interface_that_acts_otherwise_is_found(damaged, golden, discrete):
    """Its checksums are all right; only the golden cases tell."""
    cases = golden(discrete)
    replace(damaged, "golden.npz", packed(**{**cases, "noise": -cases["noise"]}))
    with pytest.raises(BundleError, match="differs from its golden cases"):
        verify(damaged)


@pytest.mark.parametrize(
    ("field", "key", "value", "message"),
    [
        ("action", "high", 0, "actions outside the bounds that manifest.json declares"),
        ("graph", "batch", 4, "takes any number of rows, and the manifest says 4"),
    ],
)
def test_a_manifest_that_was_edited_is_found(field, key, value, message, damaged):
    path = damaged / "manifest.json"
    document = json.loads(path.read_text())
    document[field][key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message):
        verify(damaged)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an archive",
        packed(observation=np.zeros((1, 4), np.float32)),
        packed(**dict.fromkeys(("obs", "noise", "action"), np.array([{}], object))),
    ],
)
def test_golden_cases_that_cannot_be_read_are_refused(damaged, content):
    """The last holds pickled objects, which must not be loaded."""
    replace(damaged, "golden.npz", content)
    with pytest.raises(BundleError, match=r"golden\.npz(: obs must be float32| can't be read)"):
        verify(damaged)


@pytest.mark.parametrize(
    "cases",
    [
        {"obs": np.zeros((3, 5), np.float32)},
        {"obs": np.zeros((3, 4), np.float64)},
        {"noise": np.zeros((2, 2), np.float32)},
        {"noise": np.zeros((3, 3), np.float32)},
        {"action": np.zeros(2, np.int64)},
        {"action": np.zeros(3, np.int32)},
        {"action": np.zeros((3, 1), np.int64)},
        {
            name: np.zeros((0, *shape), dtype)
            for name, shape, dtype in (
                ("obs", (4,), np.float32),
                ("noise", (2,), np.float32),
                ("action", (), np.int64),
            )
        },
    ],
    ids=str,
)
def test_golden_cases_of_another_policy_are_refused(damaged, cases):
    right = {
        "obs": np.zeros((3, 4), np.float32),
        "noise": np.zeros((3, 2), np.float32),
        "action": np.zeros(3, np.int64),
    }
    replace(damaged, "golden.npz", packed(**right))
    verify(damaged)
    replace(damaged, "golden.npz", packed(**{**right, **cases}))
    with pytest.raises(BundleError, match=r"golden\.npz"):
        verify(damaged)


def test_a_bundle_without_golden_cases_is_refused(damaged):
    (damaged / "golden.npz").unlink()
    path = damaged / "manifest.json"
    document = json.loads(path.read_text())
    del document["files"]["golden.npz"]
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"lists no golden\.npz"):
        verify(damaged)


def test_floats_agree_to_rounding_and_integers_exactly():
    one = np.ones(2, np.float32)
    assert agree(one, one + np.float32(1.5e-5))
    assert not agree(one, one + np.float32(3e-5))
    assert not agree(one, np.ones(3, np.float32))
    assert not agree(np.array([np.nan], np.float32), np.array([1], np.float32))
    small = ArraySpec("action", "float32", (2,), (-1e-6, -1.0), (1e-6, 1.0)).unit
    assert not agree(one - one, np.float32([1e-7, 0]), small)
    assert agree(one - one, np.float32([0, 1e-7]), small)
    whole = np.array([10**9])
    assert agree(whole, whole)
    assert not agree(whole, whole + 1)
    assert not agree(whole, whole.astype(np.int32))


def test_difference_is_the_largest():
    assert difference(np.array([1, 5]), np.array([2, 1])) == 4
    assert difference(np.zeros(0), np.zeros(0)) == 0
