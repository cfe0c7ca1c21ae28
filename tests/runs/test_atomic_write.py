"""Files appear whole, and an error names the file that was asked for."""

import os

import pytest

from trpo_tf.cli.terminal import one_line
from trpo_tf.support.atomic_write import write_atomically


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    link.symlink_to(target)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"piped")
    write_atomically(link, b"linked")
    assert os.read(reading, 10) == b"piped"
    assert (pipe.is_fifo(), link.is_symlink(), target.read_bytes()) == (True, True, b"linked")
    os.close(reading)


def test_an_error_names_the_file_and_the_fix(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path, reason, fix in (
        (tmp_path / "none/x", "No such file or directory", "check the path"),
        (tmp_path / "file/x", "Not a directory", "choose another path"),
        (tmp_path, "Is a directory", "give the path of a file"),
    ):
        with pytest.raises(OSError) as failure:  # noqa: PT011
            write_atomically(path, b"text")
        assert one_line(failure.value) == f"{reason}: '{path}'; {fix}"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
