"""Which bundles a repository finds, loads, refuses and lets go; the server around it is left out."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.support.serving.followed import Followed, put
from trpo_tf.serving import BundleError
from trpo_tf.serving.bundle.files import FileEntry
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.repository import repository
from trpo_tf.serving.repository.canary import make_release


def write_file(bundle: Path, name: str, content: bytes) -> None:
    """Change a file of a bundle, and say so in its manifest."""
    (bundle / name).write_bytes(content)
    document = json.loads((bundle / "manifest.json").read_text())
    entry = FileEntry.of(content)
    document["files"][name] = {"size": entry.size, "sha256": entry.sha256}
    (bundle / "manifest.json").write_text(json.dumps(document))


def truncate_model(bundle: Path) -> None:
    content = (bundle / "policy.onnx").read_bytes()
    (bundle / "policy.onnx").write_bytes(content[: len(content) // 2])


def change_checksum(bundle: Path) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    document["files"]["policy.onnx"]["sha256"] = "0" * 64
    path.write_text(json.dumps(document))


def change_golden_action(bundle: Path) -> None:
    with np.load(bundle / "golden.npz") as archive:
        cases = dict(archive)
    cases["action"] = 1 - cases["action"]
    np.savez(bundle / "golden.npz", **cases)
    write_file(bundle, "golden.npz", (bundle / "golden.npz").read_bytes())


def put_another_graph(bundle: Path) -> None:
    write_file(bundle, "policy.onnx", (bundle.parents[1] / "continuous.onnx").read_bytes())


def damage_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")


def remove_golden(bundle: Path) -> None:
    (bundle / "golden.npz").unlink()


BAD = {
    truncate_model: "it has 579 bytes, not 1,159",
    change_checksum: "sha256 differs",
    change_golden_action: "differs from its golden cases",
    put_another_graph: "has no input 'obs'|has input 'obs' as",
    damage_manifest: "not JSON",
    remove_golden: "can't be read",
}


# Versions that come and go


def test_the_newest_versions_answer_and_only_what_changed_is_loaded(discrete, tmp_path):
    for version in (1, 2):
        put(discrete, tmp_path / "walk" / str(version))
    one, two = Followed(tmp_path), Followed(tmp_path, ServeOptions(versions=2))
    assert (one.loaded, two.loaded) == ({"walk": ["2"]}, {"walk": ["1", "2"]})
    catalog = one.repository.catalog
    assert one.scan() == []
    assert one.repository.catalog == catalog
    put(discrete, tmp_path / "walk" / "10")
    assert one.scan() == [("walk", "10", "loaded"), ("walk", "2", "unloaded")]
    assert two.scan() == [("walk", "10", "loaded"), ("walk", "1", "unloaded")]
    assert (one.answers("walk"), two.answers("walk")) == ("10", "10")
    put(discrete, tmp_path / "walk" / "3")
    assert one.scan() == []
    assert two.scan() == [("walk", "3", "loaded"), ("walk", "2", "unloaded")]


def test_without_its_newest_version_the_next_answers_and_without_any_the_last(discrete, tmp_path):
    for version in (1, 2):
        put(discrete, tmp_path / "walk" / str(version))
    followed = Followed(tmp_path)
    shutil.rmtree(tmp_path / "walk" / "2")
    assert followed.scan() == [("walk", "1", "loaded"), ("walk", "2", "unloaded")]
    shutil.rmtree(tmp_path / "walk" / "1")
    assert [followed.scan() for _ in range(3)] == [[], [], []]
    assert followed.answers("walk") == "1"
    assert followed.repository.catalog.is_ready


def test_a_model_is_unloaded_once_its_folder_is_gone_for_two_scans(discrete, tmp_path):
    for name in ("walk", "run"):
        put(discrete, tmp_path / name / "1")
    followed = Followed(tmp_path)
    (tmp_path / "walk").rename(tmp_path / ".away")
    assert followed.scan() == []
    (tmp_path / ".away").rename(tmp_path / "walk")
    assert followed.scan() == []
    shutil.rmtree(tmp_path / "walk")
    assert followed.scan() == []
    assert followed.answers("walk") == "1"
    assert followed.scan() == [("walk", "1", "unloaded")]
    assert followed.loaded == {"run": ["1"]}
    assert followed.repository.catalog.is_ready


def test_a_repository_that_is_away_changes_nothing(discrete, tmp_path, caplog):
    put(discrete, tmp_path / "models" / "walk" / "1")
    followed = Followed(tmp_path / "models")
    (tmp_path / "models").rename(tmp_path / "elsewhere")
    assert [followed.scan() for _ in range(3)] == [[], [], []]
    assert followed.answers("walk") == "1"
    assert len(caplog.records) == 1
    assert "everything stays as it is" in caplog.text


@pytest.mark.parametrize("alone", [True, False])
def test_a_volume_that_is_not_mounted_any_more_changes_nothing(discrete, tmp_path, caplog, monkeypatch, alone):
    """Its folder is empty and on another device. Models that come there are served, and may be removed again."""
    models, device = tmp_path / "models", 7
    monkeypatch.setattr(repository, "_device_of", lambda _folder: device)
    walk = put(discrete, models if alone else models / "walk")
    followed = Followed(models)
    served = [*followed.loaded]
    walk.rename(tmp_path / "unmounted")
    models.mkdir(exist_ok=True)
    device = 8
    assert [followed.scan() for _ in range(3)] == [[], [], []]
    assert [*followed.loaded] == served
    assert "what was mounted there is gone" in caplog.text
    if not alone:
        put(discrete, models / "run")
        followed.scan()
        assert [*followed.loaded] == ["run", "walk"]
        shutil.rmtree(models / "run")
        for _ in range(3):
            followed.scan()
        assert not followed.loaded


def test_a_bundle_replaced_by_rename_or_link_is_noticed(discrete, tmp_path):
    bundle = put(discrete, tmp_path / "walk")
    put(discrete, tmp_path / "run")
    followed = Followed(tmp_path)
    before = followed.repository.catalog.find("walk")
    newer = put(discrete, tmp_path / ".newer")
    write_manifest_version(newer, 7)
    bundle.rename(tmp_path / ".older")
    newer.rename(bundle)
    assert followed.scan() == [("walk", "7", "loaded"), ("walk", "1", "unloaded")]
    assert followed.repository.catalog.find("walk") is not before
    bundle.rename(tmp_path / ".newer")
    (tmp_path / ".link").symlink_to(".older")
    (tmp_path / ".link").rename(bundle)
    assert followed.scan() == [("walk", "1", "loaded"), ("walk", "7", "unloaded")]
    (tmp_path / ".link").symlink_to(".newer")
    (tmp_path / ".link").rename(bundle)
    assert followed.scan() == [("walk", "7", "loaded"), ("walk", "1", "unloaded")]


def test_a_volume_of_links_as_kubernetes_swaps_it_is_noticed(discrete, tmp_path):
    """Files are links through `..data`, itself a link, that is renamed over."""
    for version in (1, 2):
        write_manifest_version(put(discrete, tmp_path / f"..{version}"), version)
    (tmp_path / "..data").symlink_to("..1")
    for name in ("manifest.json", "policy.onnx", "golden.npz"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    followed = Followed(tmp_path)
    assert followed.loaded == {"discrete": ["1"]}
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert followed.scan() == [("discrete", "2", "loaded"), ("discrete", "1", "unloaded")]


@pytest.mark.parametrize("mtime", [0, 2**33])
def test_a_manifest_of_the_same_size_and_time_is_noticed_whatever_the_clock_says(discrete, tmp_path, mtime):
    bundle = put(discrete, tmp_path / "walk")
    write_manifest_version(bundle, 1)
    os.utime(bundle / "manifest.json", (mtime, mtime))
    followed = Followed(tmp_path)
    newer = shutil.copytree(bundle, tmp_path / ".newer")
    write_manifest_version(newer, 7)
    os.utime(newer / "manifest.json", (mtime, mtime))
    assert (newer / "manifest.json").stat().st_size == (bundle / "manifest.json").stat().st_size
    (newer / "manifest.json").rename(bundle / "manifest.json")
    assert followed.scan() == [("walk", "7", "loaded"), ("walk", "1", "unloaded")]


def test_files_that_are_written_over_in_place_take_over_once_they_are_whole(discrete, continuous, tmp_path):
    """As `rsync --inplace` does: the manifest is that of what comes before the rest is there."""
    bundle = put(discrete, tmp_path / "walk")
    followed = Followed(tmp_path, ServeOptions(allow_new_interface=True))
    for name in ("manifest.json", "policy.onnx", "golden.npz"):
        content = (continuous / name).read_bytes()
        for size in (len(content) // 2, len(content)):
            assert followed.scan() in ([], [("walk", "", "refused")])
            assert followed.answers("walk") == "1"
            with (bundle / name).open("r+b") as file:
                file.write(content[:size])
                file.truncate(size)
    assert followed.scan() == [("walk", "1", "loaded")]


def test_a_version_that_is_away_between_two_scans_is_the_same(discrete, tmp_path):
    put(discrete, tmp_path / "walk" / "1")
    followed = Followed(tmp_path)
    before = followed.repository.catalog
    (tmp_path / "walk" / "1").rename(tmp_path / "walk" / ".1")
    (tmp_path / "walk" / ".1").rename(tmp_path / "walk" / "1")
    assert followed.scan() == []
    assert followed.repository.catalog.releases["walk"] is before.releases["walk"]


def test_thousands_of_versions_are_looked_at_in_a_moment(discrete, tmp_path):
    put(discrete, tmp_path / "bundle")
    for version in range(1, 2001):
        (tmp_path / "models" / "walk").mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / "walk" / str(version)).symlink_to("../../bundle")
    followed = Followed(tmp_path / "models")
    assert followed.loaded == {"walk": ["2000"]}
    times = []
    for _ in range(3):
        began = time.process_time()
        assert followed.scan() == []
        times.append(time.process_time() - began)
    assert min(times) < 0.5  # 0.04 here


def write_manifest_version(bundle: Path, version: int) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    document["provenance"]["model_version"] = version
    path.write_text(json.dumps(document))


# What is refused


@pytest.mark.parametrize(("damage", "why"), BAD.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_a_bad_version_is_refused_once_and_tried_again_when_it_changes(discrete, continuous, tmp_path, damage, why):
    shutil.copy(continuous / "policy.onnx", tmp_path / "continuous.onnx")
    put(discrete, tmp_path / "walk" / "1")
    followed = Followed(tmp_path)
    damage(put(discrete, tmp_path / "walk" / "2"))
    assert followed.scan() == []  # it could be being written
    assert followed.scan() == [("walk", "2", "refused")]
    assert re.search(why, followed.events[0][3])
    assert [followed.scan() for _ in range(3)] == [[], [], []]
    assert followed.answers("walk") == "1"
    newest, older = followed.repository.catalog.entries
    assert (newest.version, newest.is_loaded, older.version, older.is_loaded) == ("2", False, "1", True)
    shutil.rmtree(tmp_path / "walk" / "2")
    put(discrete, tmp_path / "walk" / "2")
    assert followed.scan() == [("walk", "2", "loaded"), ("walk", "1", "unloaded")]


def test_a_bundle_replaced_by_a_bad_one_goes_on(discrete, tmp_path):
    bundle = put(discrete, tmp_path / "walk")
    followed = Followed(tmp_path)
    change_golden_action(bundle)
    assert [followed.scan(), followed.scan(), followed.scan()] == [[], [("walk", "", "refused")], []]
    assert followed.answers("walk") == "1"


def test_a_version_that_is_being_written_is_not_refused(discrete, tmp_path):
    """Whatever comes first: also if the manifest is there before the files that it lists."""
    put(discrete, tmp_path / "walk" / "1")
    followed = Followed(tmp_path)
    for version, order in enumerate([sorted, lambda names: sorted(names, reverse=True)], 2):
        folder = tmp_path / "walk" / str(version)
        folder.mkdir()
        told = []
        for name in order(["manifest.json", "policy.onnx", "golden.npz"]):
            content = (discrete / name).read_bytes()
            for part in (content[: len(content) // 2], content):
                (folder / name).write_bytes(part)
                told += followed.scan()
        assert told == [("walk", str(version), "loaded"), ("walk", str(version - 1), "unloaded")]


def test_a_version_without_a_signature_is_refused_where_a_key_is_asked_for(discrete, tmp_path):
    pytest.importorskip("model_signing")
    put(discrete, tmp_path / "walk" / "1")
    with pytest.raises(BundleError, match="is not signed"):
        Followed(tmp_path, ServeOptions(public_key=str(tmp_path / "key.pem")))


def test_at_the_start_one_good_model_is_enough(discrete, tmp_path):
    bad = put(discrete, tmp_path / "walk" / "1")
    truncate_model(bad)
    with pytest.raises(BundleError, match="not what was exported"):
        Followed(tmp_path)
    put(discrete, tmp_path / "run" / "1")
    followed = Followed(tmp_path)
    assert [event[:3] for event in followed.events] == [("walk", "1", "refused")]
    assert followed.loaded == {"run": ["1"]}
    assert followed.repository.catalog.absent == {"walk"}
    assert followed.repository.catalog.is_ready
    assert not Followed(tmp_path, ServeOptions(strict_readiness=True)).repository.catalog.is_ready


# Told by a client


def test_unloaded_stays_unloaded_until_it_is_loaded(discrete, tmp_path):
    for name in ("walk", "run"):
        put(discrete, tmp_path / name / "1")
    followed = Followed(tmp_path)
    followed.repository.unload("walk")
    assert followed.loaded == {"run": ["1"]}
    assert followed.repository.catalog.is_ready
    put(discrete, tmp_path / "walk" / "2")
    assert followed.scan() == []
    followed.repository.load("walk")
    assert followed.loaded == {"run": ["1"], "walk": ["2"]}
    truncate_model(put(discrete, tmp_path / "walk" / "3"))
    for _ in range(2):
        with pytest.raises(BundleError, match="not what was exported"):
            followed.repository.load("walk")
    assert followed.answers("walk") == "2"
    for change in (followed.repository.load, followed.repository.unload):
        with pytest.raises(LookupError, match="no model 'fly'"):
            change("fly")


# Shares


@pytest.mark.parametrize(("share", "newest", "of"), [(0.1, 1, 10), (0.25, 1, 4), (0.3, 3, 10), (0.99, 99, 100)])
def test_a_canary_gets_its_exact_share_at_any_time(discrete, tmp_path, share, newest, of):
    for version in (1, 2, 3):
        put(discrete, tmp_path / "walk" / str(version))
    put(discrete, tmp_path / "run" / "1")
    followed = Followed(tmp_path, ServeOptions(versions=3, canary=share))
    chosen = []
    for request in range(3 * of):
        if request % 7 == 0:  # another model's coming and going doesn't begin the count anew
            put(discrete, tmp_path / "run" / str(request + 2))
            followed.scan()
        chosen.append(followed.repository.catalog.find("walk").version)
    assert set(chosen) == {"2", "3"}
    for start in range(2 * of):
        assert chosen[start : start + of].count("3") == newest
    assert [followed.repository.catalog.find("walk", version).version for version in "123"] == list("123")


def test_without_a_share_the_newest_gets_all(discrete, catalog_of):
    model = catalog_of(discrete).find("discrete")
    release = make_release([model], 0.5)
    assert {id(release.choose()) for _ in range(10)} == {id(model)}
