"""Which bundles of a folder are found, and the names and versions that they get."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.support.serving.followed import Followed, put
from trpo_tf.serving import BundleError
from trpo_tf.serving.repository.discovery import VERSION_RULE, find_bundles, resolve_source


def test_finds_versions_by_number_and_leaves_out_what_is_none(discrete, tmp_path):
    for place in ("walk/9", "walk/10", "walk/.11", "walk/012", "walk/0", "walk/new", "run", ".hidden", "late/1"):
        put(discrete, tmp_path / place)
    (tmp_path / "late" / "1" / "manifest.json").unlink()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "link").symlink_to("run")
    found = find_bundles(tmp_path)
    assert {name: [location.version for location in locations] for name, locations in found.locations.items()} == {
        "late": [],
        "link": [""],
        "run": [""],
        "walk": ["9", "10"],
    }
    assert found.notes == [
        f"ignored in {tmp_path}: 'notes.txt' (it is no folder)",
        f"ignored in {tmp_path / 'walk'}: '0', '012', 'new' ({VERSION_RULE})",
    ]


def test_a_bundle_has_its_own_name_and_every_model_of_a_repository_its_folders(discrete, continuous, tmp_path):
    assert Followed(discrete).loaded == {"discrete": ["1"]}
    put(discrete, tmp_path / "walk")
    (tmp_path / "empty").mkdir()
    alone = Followed(tmp_path)
    assert alone.loaded == {"walk": ["1"]}
    put(continuous, tmp_path / "run")
    assert alone.scan() == [("run", "1", "loaded")]
    assert alone.loaded == Followed(tmp_path).loaded == {"run": ["1"], "walk": ["1"]}
    shutil.rmtree(tmp_path / "run")
    assert [alone.scan(), alone.scan()] == [[], [("run", "1", "unloaded")]]
    assert alone.loaded == Followed(tmp_path).loaded == {"walk": ["1"]}
    (tmp_path / "walk").rename(tmp_path / "7")
    assert Followed(tmp_path).loaded == {"7": ["1"]}


def test_an_empty_repository_may_become_one_bundle_and_another_may_not(discrete, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "empty").mkdir()
    put(discrete, tmp_path / "full" / "walk")
    empty, full = Followed(tmp_path / "empty"), Followed(tmp_path / "full")
    for root, followed, expected in (
        (tmp_path / "empty", empty, [("discrete", "1", "loaded")]),
        (tmp_path / "full", full, []),
    ):
        for name in ("policy.onnx", "golden.npz", "manifest.json"):
            assert followed.scan() == []
            shutil.copy(discrete / name, root)
        assert followed.scan() == expected
    assert (empty.loaded, full.loaded) == ({"discrete": ["1"]}, {"walk": ["1"]})
    full.scan()
    assert caplog.text.count("holds a manifest since") == 1
    assert Followed(tmp_path / "full").loaded == {"discrete": ["1"]}


def test_a_bundle_that_is_replaced_by_one_of_another_name_keeps_it_until_a_restart(discrete, tmp_path, caplog):
    bundle = put(discrete, tmp_path / "bundle")
    followed = Followed(bundle)
    change_manifest(bundle, name="other")
    followed.scan()
    followed.scan()
    assert list(followed.loaded) == ["discrete"]
    assert caplog.text.count("is called other now") == 1
    assert list(Followed(bundle).loaded) == ["other"]


def test_beside_a_manifest_versions_are_left_out_and_that_is_said(discrete, tmp_path, caplog):
    for version in ("1", "2"):
        put(discrete, tmp_path / "walk" / version)
    followed = Followed(tmp_path)
    assert followed.loaded == {"walk": ["2"]}
    for name in ("policy.onnx", "golden.npz", "manifest.json"):
        shutil.copy(discrete / name, tmp_path / "walk")
    followed.scan()
    assert followed.loaded == {"walk": ["1"]}
    assert "'1', '2' (next to a manifest.json, which makes walk one bundle)" in caplog.text


@pytest.mark.parametrize("version", ["v1", "001", "0", "-1", "1.0", "\u0663", "latest", "1" * 19, "1 "])
def test_a_version_that_is_none_is_said_once_with_what_one_is_called(discrete, tmp_path, caplog, version):
    put(discrete, tmp_path / "walk" / version)
    with pytest.raises(BundleError, match=re.escape(VERSION_RULE)):
        resolve_source(tmp_path)
    put(discrete, tmp_path / "walk" / "3")
    followed = Followed(tmp_path)
    followed.scan()
    assert followed.loaded == {"walk": ["3"]}
    assert [record.message for record in caplog.records] == [
        f"ignored in {tmp_path / 'walk'}: {version!r} ({VERSION_RULE})"
    ]


def test_names_that_can_be_no_models_are_said_once(discrete, tmp_path, caplog):
    put(discrete, tmp_path / "walk" / "1")
    for name in (b"line\nbreak", b"\xff\xfe", b"walk:predict"):
        shutil.copytree(os.fsencode(discrete), os.path.join(os.fsencode(tmp_path), name))
    (tmp_path / "away").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "walk" / "2").touch()
    for index in range(8):
        (tmp_path / f"file{index}").touch()
    followed = Followed(tmp_path)
    followed.scan()
    assert followed.loaded == {"walk": ["1"]}
    said = {record.message for record in caplog.records}
    assert said == {
        f"ignored in {tmp_path}: 'away', 'loop' (its link leads nowhere)",
        f"ignored in {tmp_path}: 'file0', 'file1', 'file2', 'file3', 'file4' and 4 more (it is no folder)",
        f"ignored in {tmp_path}: 'line\\nbreak', '\\udcff\\udcfe' (its name has characters that can't be shown)",
        f"ignored in {tmp_path}: 'walk:predict' (the path of another model's predictions would be the same)",
        f"ignored in {tmp_path / 'walk'}: '2' (it is no folder)",
    }
    assert len(caplog.records) == len(said)


def test_names_that_look_alike_are_models_of_their_own(discrete, tmp_path, caplog):
    for name in ("caf\u00e9", "cafe\u0301", "Walk", "walk"):
        put(discrete, tmp_path / name)
    assert len(Followed(tmp_path).loaded) == 4
    assert "'cafe\\u0301', 'caf\\xe9', which look alike" in caplog.text
    assert "'Walk', 'walk', which look alike" in caplog.text


def test_paths_that_are_no_text_crash_nothing(discrete, tmp_path):
    root = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"\xff")))
    put(discrete, root / "walk" / "1")
    (put(discrete, root / "walk" / "2") / "policy.onnx").write_bytes(b"")
    followed = Followed(root)
    (root / "run").mkdir()
    followed.scan()
    reason = followed.repository.catalog.entries[0].reason
    assert "not what was exported" in reason
    reason.encode()


def test_what_holds_no_bundle_is_refused_and_what_holds_nothing_waits(discrete, tmp_path):
    with pytest.raises(BundleError, match="is no folder"):
        resolve_source(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(BundleError, match=r"neither is nor holds a bundle .*'notes\.txt' \(it is no folder\)"):
        resolve_source(tmp_path)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "lost+found").mkdir()
    waiting = Followed(tmp_path)
    assert not waiting.repository.catalog.is_ready
    put(discrete, tmp_path / "walk" / "1")
    assert waiting.scan() == [("walk", "1", "loaded")]
    assert waiting.repository.catalog.is_ready


def change_manifest(bundle: Path, **changes: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
