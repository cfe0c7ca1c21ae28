"""Files of keys, and the command that makes their lines."""

import hashlib
import os
import re
import subprocess
import sys

import pytest

from trpo_tf.serving.keys import KeyFileError, KeyRing, read_keys


def line(name: str, key: str = "") -> str:
    return f"{name}:{hashlib.sha256((key or name).encode()).hexdigest()}"


def make(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "trpo_tf.serving.keys", *arguments], capture_output=True, text=True, check=False
    )


def test_help_makes_no_key():
    done = make("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: python -m trpo_tf.serving.keys" in done.stdout
    assert "python -m trpo_tf.serving.keys robot >> keys" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("a", "b"), ("--nam",), ("-x",), ("--", "-x"), ("",), ("a:b",), ("a b",)])
def test_what_is_no_name_makes_no_key(arguments):
    done = make(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: [^\n]*; see python -m trpo_tf\.serving\.keys --help\n", done.stderr), done.stderr


@pytest.mark.parametrize(
    "text",
    [
        line("a") + "\r\n" + line("b") + "\r\n",
        "\ufeff" + line("a") + "\n" + line("b"),
        f"# who\n\n  {line('a')}  # robot\n{line('b')}\n#{line('c')}\n",
    ],
)
def test_what_editors_add_does_no_harm(tmp_path, text):
    (tmp_path / "keys").write_text(text, "utf-8", newline="")
    assert list(read_keys(tmp_path / "keys").values()) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (line("a") + line("b"), "line 1 goes on after its SHA-256; if that is the next key, put a line end between"),
        (f"{line('a')}\n{line('a', 'other')}\n", "line 2: there is another 'a'; give each key a name of its own"),
        (f"{line('a')}\n{line('b', 'a')}\n", "line 2 has the key of 'a' again; remove one of the two"),
        (line("a").upper(), "line 1 is not NAME:SHA256; make it with python -m trpo_tf.serving.keys NAME"),
        (b"\x7fELF\xff\xfe\x00", "it is not text; make it with python -m trpo_tf.serving.keys NAME"),
        (b"#" * (2**20 + 1), "it has more than 1048576 bytes"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path, content, message):
    path = tmp_path / "keys"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(KeyFileError) as raised:
        read_keys(path)
    assert str(path) in str(raised.value)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_line_appended_without_a_line_end_before_it_ends_the_server_with_that_message(tmp_path, discrete):
    path = tmp_path / "keys"
    path.write_text(make("robot").stdout.rstrip("\n"))
    path.write_text(path.read_text() + make("phone").stdout)
    command = [sys.executable, "-m", "trpo_tf", "serve", str(discrete), "--port", "0", "--keys", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {path}, line 1 goes on after its SHA-256; if that is the next key, put a line end between them\n"
    )


def test_only_a_regular_file_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path, "not a regular file"), (tmp_path / "pipe", "not a regular file")):
        with pytest.raises(KeyFileError, match=reason):
            read_keys(path)
    with pytest.raises(KeyFileError, match="No such file"):
        read_keys(tmp_path / "none")


def test_a_wrong_file_leaves_the_keys_as_they_were(tmp_path):
    path = tmp_path / "keys"
    path.write_text(line("a"))
    ring = KeyRing(path)
    path.write_text("nonsense")
    with pytest.raises(KeyFileError):
        ring.reload()
    assert ring.name_of(b"Bearer a") == "a"
    path.write_text(line("b"))
    assert ring.reload()
    assert not ring.reload()
    assert (ring.name_of(b"Bearer a"), ring.name_of(b"bearer b")) == (None, "b")


def test_a_line_that_cannot_be_written_is_said():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "trpo_tf.serving.keys", "robot"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: can't write the key's line: No space left on device; no key was made\n"
