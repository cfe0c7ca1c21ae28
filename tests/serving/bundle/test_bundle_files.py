"""Bundles whose files are larger than they say, endless, or no files: refused before they take memory or time."""

import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from trpo_tf import serving
from trpo_tf.serving import BundleError
from trpo_tf.serving.bundle.available_memory import available_bytes
from trpo_tf.serving.bundle.files import FileEntry
from trpo_tf.serving.bundle.manifest import Manifest, read_manifest
from trpo_tf.serving.bundle.manifest_fields import MOST_MANIFEST_BYTES
from trpo_tf.serving.verify import verify

GROWN = 64 * 2**20
"""Bytes by which resident memory may not grow; what is offered is many times that."""


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture
def lean():
    """Fails if resident memory grows beyond what it ever was."""
    before = peak()
    yield
    assert peak() - before < GROWN


def list_file(bundle: Path, name: str, size: int, sha256: str = "0" * 64) -> None:
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    document["files"][name] = {"size": size, "sha256": sha256}
    path.write_text(json.dumps(document))


def put_golden(bundle: Path, content: bytes) -> None:
    (bundle / "golden.npz").write_bytes(content)
    entry = FileEntry.of(content)
    list_file(bundle, "golden.npz", entry.size, entry.sha256)


def grow(path: Path, size: int) -> None:
    """Make a file sparse, so that it costs nothing but to who reads it."""
    with path.open("r+b") as file:
        file.truncate(size)


def replace_by(kind: str, path: Path) -> None:
    path.unlink()
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                os.chdir(path.parent)  # a socket's name is short
                listener.bind(path.name)


@pytest.mark.parametrize("name", ["manifest.json", "policy.onnx", "golden.npz"])
@pytest.mark.parametrize("size", [2**30, 2**40])
def test_a_file_larger_than_it_says_is_not_read(damaged, lean, name, size):
    grow(damaged / name, size)
    with pytest.raises(BundleError, match=f"{name} (is not what was exported|has {size:,} bytes)"):
        verify(damaged)
    if name != "golden.npz":
        with pytest.raises(BundleError, match=f"{name}.*{size:,}"):
            serving.load(damaged)


def test_a_file_that_only_verify_reads_is_not_held_in_memory(damaged, lean):
    graph = damaged / "saved_model" / "saved_model.pb"
    before = graph.stat().st_size
    grow(graph, 2**40)
    with pytest.raises(BundleError, match="it has 1,099,511,627,776 bytes, not"):
        verify(damaged)
    grow(graph, before)
    size = 256 * 2**20
    (damaged / "more").touch()
    grow(damaged / "more", size)
    list_file(damaged, "more", size, "a6d72ac7690f53be6ae46ba88506bd97302a093f7108472bd9efc3cefda06484")
    assert verify(damaged).golden_cases > 100


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "socket"])
@pytest.mark.parametrize("name", ["manifest.json", "policy.onnx", "golden.npz"])
def test_only_regular_files_are_read(damaged, monkeypatch, kind, name):
    monkeypatch.chdir(damaged)
    replace_by(kind, damaged / name)
    with pytest.raises(BundleError, match=rf"{name} (is no regular file|can't be read \(No such device)"):
        verify(damaged)
    if name != "golden.npz":
        with pytest.raises(BundleError, match=name):
            serving.load(damaged)


def test_links_to_files_are_read(damaged, tmp_path):
    for name in ("manifest.json", "policy.onnx", "golden.npz"):
        (damaged / name).rename(tmp_path / name)
        (damaged / name).symlink_to(tmp_path / name)
    assert verify(damaged).golden_cases > 100


def test_a_bundle_that_is_honest_and_too_large_is_refused_by_its_manifest(damaged, lean):
    grow(damaged / "policy.onnx", 2**40)
    list_file(damaged, "policy.onnx", 2**40)
    for check in (serving.load, verify):
        with pytest.raises(
            BundleError, match=r"discrete needs about 4,398,0\d\d MB of memory to load, and .* available"
        ):
            check(damaged)


def test_arrays_that_are_too_large_are_refused_by_the_manifest(damaged, lean):
    document = json.loads((damaged / "manifest.json").read_text())
    document["observation"][0] |= {"shape": [2**20, 2**30], "low": None, "high": None}
    (damaged / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleError, match="of memory to load"):
        serving.load(damaged)


# The manifest


@pytest.mark.parametrize("filler", ["[]", "{}", '{"":{}}', '[[[""]]]', '""'])
def test_a_manifest_that_amplifies_is_not_parsed(damaged, lean, filler):
    text = (damaged / "manifest.json").read_text().rstrip()[:-1]
    more = (MOST_MANIFEST_BYTES - len(text) - 100) // (len(filler) + 1)
    with pytest.raises(BundleError, match=r"manifest.json is not JSON \(more than"):
        Manifest.from_json(f'{text}, "more": [{",".join([filler] * more)}]}}')


@pytest.mark.parametrize(
    ("provenance", "why"),
    [
        ("{" + '"a":{' * 100 + "}" * 101, "nested more than 64 deep"),
        ('{"a": 1e999}', "not JSON"),
        (r'{"a": "\ud800"}', "not JSON"),
        (r'{"\udfff": 1}', "not JSON"),
        ('{"model_version": "a/b"}', "model_version must be"),
        ('{"model_version": ""}', "model_version must be"),
        ('{"model_version": "' + "a" * 256 + '"}', "model_version must be"),
        ('{"model_version": {}}', "model_version must be"),
        ('{"model_version": true}', "model_version must be"),
    ],
)
def test_a_manifest_that_the_server_could_not_show_is_refused(damaged, provenance, why):
    document = json.loads((damaged / "manifest.json").read_text()) | {"provenance": "PROVENANCE"}
    (damaged / "manifest.json").write_text(json.dumps(document).replace('"PROVENANCE"', provenance))
    with pytest.raises(BundleError, match=why):
        read_manifest(damaged)


# The golden cases


def member(header: dict[str, object] | bytes, data: bytes = b"", version: int = 1) -> bytes:
    """A file of NumPy's format, whose header may lie."""
    text = header if isinstance(header, bytes) else repr(header).encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def archive(obs: bytes, method: int = zipfile.ZIP_DEFLATED, more: dict[str, bytes] | None = None) -> bytes:
    """Golden cases in which the observation is something else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as golden:
        golden.writestr("obs.npy", obs)
        for name, array in (("noise", np.zeros((3, 2), np.float32)), ("action", np.zeros(3, np.int64))):
            with golden.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array)
        for name, content in (more or {}).items():
            golden.writestr(name, content)
    return buffer.getvalue()


def described(*shape: int, descr: str = "<f4", fortran_order: bool = False) -> dict[str, object]:
    return {"descr": descr, "fortran_order": fortran_order, "shape": shape}


def lying(content: bytes, size: int) -> bytes:
    """The archive with another unpacked size of its first member, in both of its headers."""
    central = content.index(b"PK\x01\x02")
    return (
        content[:22] + struct.pack("<I", size) + content[26 : central + 24]
        + struct.pack("<I", size) + content[central + 28 :]
    )  # fmt: skip


HOSTILE = {
    "zeros that take a thousandth when packed": lambda: archive(member(described(2**22, 4), bytes(2**26))),
    "the same, packed by bzip2": lambda: archive(member(described(3, 4), bytes(2**26)), zipfile.ZIP_BZIP2),
    "the same, packed by lzma": lambda: archive(member(described(3, 4), bytes(2**26)), zipfile.ZIP_LZMA),
    "zeros that are said to be few": lambda: lying(archive(member(described(3, 4), bytes(2**26))), 200),
    "few that are said to be many": lambda: lying(archive(member(described(3, 4), bytes(48))), 2**31),
    "a shape of a gigabyte": lambda: archive(member(described(2**28, 4), bytes(48))),
    "a shape of more than there is": lambda: archive(member(described(2**62, 4), bytes(48))),
    "a negative shape": lambda: archive(member(described(-1, 4), bytes(48))),
    "a header of four gigabytes": lambda: archive(
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(2**26)
    ),
    "a header that is no dict": lambda: archive(member(b"(" * 5000, bytes(48))),
    "objects": lambda: archive(member(described(3, 4, descr="|O"), bytes(96))),
    "a dtype of two fields": lambda: archive(member({**described(3, 4), "descr": [("a", "<f4")]}, bytes(48))),
    "another byte order": lambda: archive(member(described(3, 4, descr=">f4"), bytes(48))),
    "two of one name": lambda: archive(member(described(3, 4), bytes(48)), more={"noise.npy": b""}),
    "many members": lambda: archive(
        member(described(3, 4), bytes(48)), more={str(number): b"" for number in range(20_000)}
    ),
    "an archive that ends early": lambda: archive(member(described(3, 4), bytes(48)))[:-30],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_golden_cases_that_unpack_to_more_than_they_may_are_refused(damaged, run_python, tmp_path):
    """All in one process, which has verified a good bundle before; its memory grows by half of what they unpack to."""
    good = Path(shutil.copytree(damaged, tmp_path / "good"))
    folders = [tmp_path / f"hostile{number}" for number in range(len(HOSTILE))]
    for make, folder in zip(HOSTILE.values(), folders, strict=True):
        shutil.copytree(damaged, folder)
        put_golden(folder, make())
    # A process begins with its parent's ru_maxrss; VmHWM is its own.
    code = (
        "import re; from trpo_tf.serving import BundleError; from trpo_tf.serving.verify import verify\n"
        "def peak(): return int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
        f"verify({str(good)!r}); before = peak()\n"
        f"for folder in {[str(folder) for folder in folders]!r}:\n"
        "    try: verify(folder); said = 'nothing'\n"
        "    except BundleError as error: said = str(error).replace(chr(10), ' ')\n"
        "    print(peak() - before, said)"
    )
    said = [line.split(" ", 1) for line in run_python(code).splitlines()]
    for how, (grown, refusal) in zip(HOSTILE, said, strict=True):
        assert "golden.npz" in refusal, how
        assert 1024 * int(grown) < GROWN / 2, how


def test_golden_cases_in_another_order_of_memory_are_the_same(damaged, golden, discrete):
    cases = {name: np.asfortranarray(array) for name, array in golden(discrete).items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cases)
    put_golden(damaged, buffer.getvalue())
    assert verify(damaged).golden_cases == len(cases["action"])


# Memory


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/box/inner", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:memory,cpu:/box/inner",
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
)
def test_available_memory_is_the_least_that_a_group_has_left(tmp_path, line, folder, names):
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(f"1:pids:/\n{line}\n")
    (proc / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   1000 kB\n")
    inner = groups / folder / "box" / "inner"
    inner.mkdir(parents=True)
    assert available_bytes(proc, groups) == 1000 * 1024
    for group, limit, used in ((inner, "max", 10), (inner.parent, "300000", 250000)):
        (group / names[0]).write_text(f"{limit}\n")
        (group / names[1]).write_text(f"{used}\n")
        (group / "memory.stat").write_text(f"anon 5\n{names[2]} 1000\n")
    assert available_bytes(proc, groups) == 300000 - 250000 + 1000
    (inner.parent / names[1]).write_text("400000\n")
    assert available_bytes(proc, groups) == 0
    assert available_bytes(tmp_path / "none", groups) > 2**60


# The server


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_version_that_does_not_fit_leaves_the_good_one(start, discrete, tmp_path, workers):
    models = tmp_path / "models"
    shutil.copytree(discrete, models / "walk" / "1")
    with start(models, "--poll", "0.05", "--workers", workers) as server:
        for version, honest in (("2", True), ("3", False)):
            shutil.copytree(discrete, models / f".{version}")
            grow(models / f".{version}" / "policy.onnx", 2**40)
            if honest:
                list_file(models / f".{version}", "policy.onnx", 2**40)
            (models / f".{version}").rename(models / "walk" / version)
            line = server.process.stderr.readline()
            assert line.startswith(f"refused walk version {version}: ")
            assert ("of memory to load" if honest else "it has 1,099,511,627,776 bytes, not 1,159") in line
        os.mkfifo(models / "run")
        assert "it is no folder" in server.process.stderr.readline()
        shutil.copytree(discrete, models / "run2" / ".1")
        (models / "run2" / ".1" / "manifest.json").unlink()
        os.mkfifo(models / "run2" / ".1" / "manifest.json")
        (models / "run2" / ".1").rename(models / "run2" / "1")
        assert "manifest.json is no regular file" in server.process.stderr.readline()
        assert server.request("GET", "/v2/models/walk")[1]["versions"] == ["1"]


@pytest.fixture
def small_group():
    """A control group of 256 MB to run a server in."""
    found = re.search(r"^\d+:memory:(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
    group = Path(f"/sys/fs/cgroup/memory{found[1] if found else ''}/trpo-tf-{os.getpid()}")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("256M")
    except OSError:
        pytest.skip("no control group can be made")
    yield group
    group.rmdir()


ENTER = "import os, sys; open({procs!r}, 'w').write(str(os.getpid()))\n"
ENTER += "import trpo_tf.serving.__main__ as m; sys.exit(m.main())"


def test_a_container_of_256_mb_outlives_a_version_of_a_gigabyte(start, discrete, tmp_path, small_group):
    models = tmp_path / "models"
    shutil.copytree(discrete, models / "walk" / "1")
    with start(models, "--poll", "0.05", code=ENTER.format(procs=str(small_group / "cgroup.procs"))) as server:
        for version in ("2", "3"):
            newer = shutil.copytree(discrete, models / f".{version}")
            grow(newer / "policy.onnx", 2**30)
            if version == "3":
                list_file(newer, "policy.onnx", 2**30)
            newer.rename(models / "walk" / version)
            assert server.process.stderr.readline().startswith(f"refused walk version {version}: ")
        assert server.request("GET", "/v2/models/walk")[1]["versions"] == ["1"]
        assert int((small_group / "memory.max_usage_in_bytes").read_text()) < 200e6
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0


def test_the_command_line_says_it_in_one_line(damaged):
    grow(damaged / "policy.onnx", 2**40)
    done = subprocess.run(
        [sys.executable, "-m", "trpo_tf", "serve", str(damaged), "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert stat.S_ISREG((damaged / "policy.onnx").stat().st_mode)
