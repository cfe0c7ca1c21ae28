import json
import math
import re

import numpy as np
import pytest

from trpo_tf.serving import ArraySpec, BundleError, GraphSpec, Manifest, NoiseSpec
from trpo_tf.serving.bundle.files import FileEntry
from trpo_tf.serving.bundle.manifest import read_checked, read_manifest

SHA256 = "0" * 64


def document(**changes):
    return {
        "format": "trpo-tf-bundle",
        "format_version": 3,
        "name": "policy",
        "observation": [{"name": "obs", "dtype": "float32", "shape": [2], "low": -1, "high": [1.5, None]}],
        "action": {"name": "action", "dtype": "int64", "shape": [], "low": 0, "high": 1},
        "noise": {"name": "noise", "dtype": "float32", "shape": [2], "law": "gumbel"},
        "graph": {"noise": "optional", "batch": None, "outputs": [{"name": "value", "dtype": "float32", "shape": []}]},
        "files": {"policy.onnx": {"size": 3, "sha256": SHA256}},
        "provenance": {"seed": 1},
        "parity": {},
        **changes,
    }


def parse(value):
    return Manifest.from_json(value if isinstance(value, str | bytes) else json.dumps(value))


def test_reads_what_the_format_says():
    manifest = parse(document())
    assert manifest.observation == (ArraySpec("obs", "float32", (2,), -1, (1.5, math.inf)),)
    assert manifest.action == ArraySpec("action", "int64", (), 0, 1)
    assert manifest.noise == NoiseSpec("gumbel", (2,))
    assert manifest.graph == GraphSpec("optional", None, (ArraySpec("value", "float32", ()),))
    assert manifest.files == {"policy.onnx": FileEntry(3, SHA256)}
    assert manifest.provenance == {"seed": 1}


def test_writing_and_reading_give_the_same_manifest():
    manifest = parse(document())
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_an_infinite_bound_is_null():
    written = json.loads(parse(document()).to_json())["observation"][0]
    assert (written["low"], written["high"]) == (-1, [1.5, None])


def test_bounds_have_the_shape_of_the_array():
    low, high = ArraySpec("obs", "float32", (2, 2), -1.0, (1.0, 2.0, 3.0, math.inf)).bounds()
    np.testing.assert_array_equal(low, -np.ones((2, 2)))
    np.testing.assert_array_equal(high, [[1, 2], [3, math.inf]])


def test_an_array_may_be_described_with_what_numpy_and_spaces_give():
    """`Box.dtype`, `Box.low` and `Discrete.n` are NumPy's, of which JSON knows nothing."""
    given = ArraySpec("obs", np.dtype("float32"), (np.int64(2),), np.float32([-1, 0]), np.float32([1, 0]))
    assert given == ArraySpec("obs", "float32", (2,), (-1, 0), (1, 0))
    manifest = Manifest("m", (given,), ArraySpec("action", np.int64, (), 0, np.int64(2)), NoiseSpec("normal", (1,)))
    written = json.loads(manifest.to_json())
    assert (written["observation"][0]["dtype"], written["action"]["high"]) == ("float32", 2)


@pytest.mark.parametrize(("low", "high"), [(1, -1), ((0, 5), 1), (0, (1, -math.inf))])
def test_bounds_that_allow_nothing_are_refused(low, high):
    with pytest.raises(BundleError, match="low of 'obs' must not be above its high"):
        ArraySpec("obs", "float32", (2,), low, high)


def test_a_field_of_a_later_release_is_ignored():
    assert parse(document(added_later=1)) == parse(document())


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", "[" * 100_000, "nul", json.dumps(document()).replace("1.5", "NaN"), b"\x00"],
)
def test_what_is_not_json_is_refused(text):
    with pytest.raises(BundleError, match=r"manifest\.json is not JSON .*export the bundle again"):
        parse(text)


@pytest.mark.parametrize("value", ["[]", "null", "1", '"text"'])
def test_what_is_not_an_object_is_refused(value):
    with pytest.raises(BundleError, match="must be an object"):
        parse(value)


def array(**changes):
    return {"name": "obs", "dtype": "float32", "shape": [2], "low": None, "high": None, **changes}


def graph(**changes):
    return {"noise": "optional", "batch": None, "outputs": [], **changes}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": "another"}, "format must be 'trpo-tf-bundle'"),
        ({"format": None}, "format must be"),
        ({"format_version": 2}, "format_version must be 3 or 4"),
        ({"format_version": True}, "format_version must be 3 or 4"),
        ({"format_version": "1"}, "format_version must be 3 or 4"),
        ({"name": ""}, "name must be"),
        ({"name": "a/b"}, "name must be"),
        ({"name": "a\nb"}, "name must be"),
        ({"name": 1}, "name must be"),
        ({"graph": None}, "graph must be an object"),
        ({"graph": graph(noise="some")}, r"graph\.noise must be one of optional, required, none"),
        ({"graph": graph(batch=0)}, r"graph\.batch must be a positive integer or null"),
        ({"graph": graph(batch=True)}, r"graph\.batch must be"),
        ({"graph": graph(batch=10**400)}, r"graph\.batch must be"),
        ({"graph": graph(outputs=None)}, r"outputs must be a list of objects"),
        ({"graph": graph(outputs=[array(name="action")])}, "the names must be one for each array"),
        ({"observation": None}, "observation must be a list of objects"),
        ({"observation": []}, "observation must be a list of objects"),
        ({"observation": [None]}, r"observation\[0\] must be an object"),
        ({"observation": [array(name=None)]}, r"observation\[0\]\.name"),
        ({"observation": [array(name="")]}, r"observation\[0\]\.name"),
        ({"observation": [array(dtype=None)]}, r"observation\[0\]\.dtype"),
        ({"observation": [array(dtype="object")]}, r"observation\[0\]\.dtype"),
        ({"observation": [array(dtype="f4,f4")]}, r"observation\[0\]\.dtype"),
        ({"observation": [array(dtype=["float32"])]}, r"observation\[0\]\.dtype"),
        ({"observation": [array(dtype="complex64")]}, r"observation\[0\]\.dtype"),
        ({"observation": [array(shape=None)]}, r"observation\[0\]\.shape"),
        ({"observation": [array(shape=2)]}, r"observation\[0\]\.shape"),
        ({"observation": [array(shape=[0])]}, r"observation\[0\]\.shape"),
        ({"observation": [array(shape=[-1])]}, r"observation\[0\]\.shape"),
        ({"observation": [array(shape=[2.0])]}, r"observation\[0\]\.shape"),
        ({"observation": [array(shape=[True])]}, r"observation\[0\]\.shape"),
        ({"observation": [array(shape=[10**400])]}, r"observation\[0\]\.shape"),
        ({"observation": [array(shape=[2**62, 2**62])]}, r"observation\[0\]\.shape"),
        ({"observation": [array(low="0")]}, r"observation\[0\]\.low"),
        ({"observation": [array(low=True)]}, r"observation\[0\]\.low"),
        ({"observation": [array(low=[0, 0, 0])]}, r"observation\[0\]\.low"),
        ({"observation": [array(high=[0])]}, r"observation\[0\]\.high"),
        ({"observation": [array(high=[0, "1"])]}, r"observation\[0\]\.high"),
        ({"observation": [array(high=10**400)]}, r"observation\[0\]\.high"),
        ({"action": array(shape="2")}, r"action\.shape"),
        ({"noise": array(law="cauchy")}, r"noise\.law"),
        ({"noise": array(law=["normal"])}, r"noise\.law"),
        ({"noise": array(name="obs", law="normal")}, "the names must be one for each"),
        ({"observation": [array(), array()]}, "the names must be one for each"),
        ({"files": None}, "files must be"),
        ({"files": []}, "files must be"),
        ({"files": {}}, "files must be an object with 'policy.onnx'"),
        ({"provenance": []}, "provenance must be an object"),
        ({"parity": None}, "parity must be an object"),
    ],
)
def test_a_wrong_field_is_named(changes, named):
    with pytest.raises(BundleError, match=named):
        parse(document(**changes))


@pytest.mark.parametrize("key", sorted(set(document())))
def test_a_missing_field_is_named(key):
    incomplete = document()
    del incomplete[key]
    with pytest.raises(BundleError, match=key):
        parse(incomplete)


@pytest.mark.parametrize(
    "path",
    [
        "../policy.onnx",
        "a/../../b",
        "..",
        "/etc/passwd",
        "//host/share",
        "",
        ".",
        "a\\b",
        "..\\b",
        "a\0b",
        "a\nb",
        "\ud800",
    ],
)
def test_a_path_that_leaves_the_bundle_is_refused(path):
    entry = {"size": 3, "sha256": SHA256}
    with pytest.raises(BundleError, match="a relative path inside the bundle"):
        parse(document(files={"policy.onnx": entry, path: entry}))


@pytest.mark.parametrize(
    "entry",
    [
        *(None, [], {}, {"size": 3}, {"sha256": SHA256}, {"size": "3", "sha256": SHA256}, {"size": 3, "sha256": 0}),
        {"size": 10**400, "sha256": SHA256},
    ],
)
def test_a_file_without_size_and_checksum_is_refused(entry):
    with pytest.raises(BundleError, match="size and sha256"):
        parse(document(files={"policy.onnx": entry}))


def test_a_fixture_bundle_is_read(bundle):
    assert read_manifest(bundle).name == bundle.name


def test_a_folder_without_manifest_is_no_bundle(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError, match="is no bundle"):
            read_manifest(path)


def test_what_lies_beside_a_bundle_is_told_from_it(bundle, tmp_path):
    (tmp_path / "sent.zip").touch()
    (tmp_path / "copy").symlink_to(bundle)
    wanted = {
        bundle / "policy.onnx": f"the folder that it lies in, {bundle}",
        tmp_path / "sent.zip": "unpack it",
        tmp_path: f"the folder in it, {tmp_path / 'copy'}",
    }
    for path, instead in wanted.items():
        with pytest.raises(BundleError, match=f"is no bundle .*{re.escape(instead)}"):
            read_manifest(path)


def test_a_manifest_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(BundleError, match="is no regular file"):
        read_manifest(tmp_path)


def test_the_bytes_that_are_returned_are_the_checked_ones(discrete):
    content = read_checked(discrete, read_manifest(discrete), "policy.onnx")
    assert content == (discrete / "policy.onnx").read_bytes()


def test_a_changed_byte_is_found(damaged):
    manifest, path = read_manifest(damaged), damaged / "policy.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="its sha256 differs"):
        read_checked(damaged, manifest, "policy.onnx")


def test_a_wrong_size_is_found(damaged):
    manifest, path = read_manifest(damaged), damaged / "policy.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="not what was exported"):
        read_checked(damaged, manifest, "policy.onnx")


def test_a_missing_and_an_unlisted_file_are_refused(damaged):
    manifest = read_manifest(damaged)
    (damaged / "policy.onnx").unlink()
    with pytest.raises(BundleError, match="can't be read"):
        read_checked(damaged, manifest, "policy.onnx")
    with pytest.raises(BundleError, match="lists no other"):
        read_checked(damaged, manifest, "other")
