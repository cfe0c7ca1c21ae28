"""Signed bundles: what is refused, and that no network is needed."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

pytest.importorskip("model_signing", reason="the extra `signing` is not installed")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from trpo_tf import serving
from trpo_tf.serving import BundleError
from trpo_tf.serving.bundle.signing import sign
from trpo_tf.serving.verify import verify


def key_pair(folder, name):
    """Private and public key files, as `openssl ecparam -genkey` and `openssl ec -pubout` write them."""
    private = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    kept, given = folder / f"{name}.pem", folder / f"{name}.pub"
    kept.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    given.write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return kept, given


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return key_pair(tmp_path_factory.mktemp("keys"), "ours")


@pytest.fixture
def signed(discrete, keys, tmp_path):
    """A signed bundle, and the public key."""
    bundle = tmp_path / "signed"
    shutil.copytree(discrete, bundle)
    (bundle / "latency.json").write_text("{}")
    sign(bundle, keys[0])
    return bundle, keys[1]


def refused(signed, message):
    bundle, key = signed
    for check in (serving.load, verify):
        with pytest.raises(BundleError, match=message) as caught:
            check(bundle, key)
        assert "\n" not in str(caught.value)


def test_a_signed_bundle_is_loaded_and_verified_wherever_it_is_moved(signed, tmp_path):
    bundle, key = signed
    assert verify(bundle, key).golden_cases > 100
    bundle.rename(tmp_path / "elsewhere")
    assert serving.load(tmp_path / "elsewhere", key).act([0.1, 0, 0, 0]) in (0, 1)
    verify(tmp_path / "elsewhere")  # without a key, as any bundle


@pytest.mark.parametrize("name", ["manifest.json", "policy.onnx", "golden.npz", "latency.json"])
def test_a_change_of_any_file_is_found(signed, name):
    path = signed[0] / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(signed, rf"its signature does not hold for .*{name}")


@pytest.mark.parametrize("name", ["extra", ".hidden", ".gitignore", "saved_model/more"])
def test_one_more_file_is_found(signed, name):
    (signed[0] / name).write_bytes(b"")
    refused(signed, "its signature does not hold")


def test_a_missing_file_is_found(signed):
    (signed[0] / "latency.json").unlink()
    refused(signed, "its signature does not hold")


def test_a_link_is_found(signed, tmp_path):
    path = signed[0] / "policy.onnx"
    path.rename(tmp_path / "policy.onnx")
    path.symlink_to(tmp_path / "policy.onnx")
    refused(signed, "its signature does not hold")


def test_another_key_is_refused(signed, tmp_path):
    refused((signed[0], key_pair(tmp_path, "theirs")[1]), "its signature does not hold")


def test_signing_again_with_another_key_does_not_help(signed, tmp_path):
    sign(signed[0], key_pair(tmp_path, "theirs")[0])
    refused(signed, "its signature does not hold")


@pytest.mark.parametrize("content", [b"", b"{}", b"no key", b"\x00" * 100])
def test_what_is_no_signature_and_what_is_no_key_is_refused(signed, content, tmp_path):
    nonsense = tmp_path / "nonsense"
    nonsense.write_bytes(content)
    refused((signed[0], nonsense), "its signature does not hold for .*nonsense")
    with pytest.raises(BundleError, match=r"nonsense can't sign .*give an EC key as PEM"):
        sign(signed[0], nonsense)
    (signed[0] / "model.sig").write_bytes(content)
    refused(signed, "its signature does not hold")


def test_a_bundle_without_signature_and_a_key_that_is_not_there(signed, discrete):
    refused((discrete, signed[1]), r"is not signed \(no model\.sig\); export it with --sign")
    refused((signed[0], signed[0] / "no.pub"), r"there is no key .*no\.pub; give the public key as PEM")


def test_a_folder_with_a_link_is_not_signed(discrete, keys, tmp_path):
    bundle = tmp_path / "linked"
    shutil.copytree(discrete, bundle)
    (bundle / "more").symlink_to(tmp_path)
    with pytest.raises(BundleError, match=r"linked can't be signed .*; put plain files in it"):
        sign(bundle, keys[0])
    assert [path.name for path in tmp_path.iterdir()] == ["linked"]


@pytest.mark.parametrize("name", ["policy.onnx", "extra"])
def test_what_is_too_large_for_a_copy_is_not_copied(signed, name):
    with (signed[0] / name).open("ab") as file:
        file.truncate(2**42)
    refused(signed, r"has 4,398,046,\d+,\d+ bytes, and [\d,]+ are free for a copy to check its signature")


@pytest.mark.parametrize("name", ["policy.onnx", "extra"])
def test_what_is_no_file_is_not_copied(signed, name):
    (signed[0] / name).unlink(missing_ok=True)
    os.mkfifo(signed[0] / name)
    refused(signed, f"{name} is no regular file")


def test_without_a_temporary_folder_it_says_what_to_do(signed, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    refused(signed, "can't be copied to check it .*; let TMPDIR name a writable folder")


def test_without_the_package_it_says_what_to_install(signed, keys, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    refused(signed, r"signatures need model-signing; pip install '.\[signing\]'")
    with pytest.raises(BundleError, match="signatures need model-signing"):
        sign(signed[0], keys[0])


WITHOUT_NETWORK = """
import socket, sys
def connect(*_):
    raise SystemExit("a connection was tried")
socket.socket.connect = socket.getaddrinfo = connect
from pathlib import Path
from trpo_tf.serving.bundle.signing import sign
from trpo_tf.serving.verify import verify
bundle, private, public = map(Path, sys.argv[1:])
sign(bundle, private)
print(verify(bundle, public).golden_cases)
"""


def test_no_connection_is_made(signed, keys):
    arguments = [sys.executable, "-c", WITHOUT_NETWORK, str(signed[0]), *map(str, keys)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_the_server_takes_a_signed_bundle_and_refuses_a_changed_one(signed, tmp_path):
    bundle, key = signed
    command = [sys.executable, "-m", "trpo_tf", "serve", str(bundle), "--port", "0", "--public-key", str(key)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        assert "serving discrete on http://" in line, line + process.stderr.read()
        socket.create_connection(("127.0.0.1", int(line.rsplit(":", 1)[1]))).close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    (bundle / "latency.json").write_text("[]")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
