"""Keys that are replaced while the server runs."""

import hashlib
import os
import re
import signal
import ssl
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.serving.waiting import wait_for
from trpo_tf.serving.listening.credential_reloading import Followed, Reloader

INFER = "/v2/models/discrete/infer"


def line(name: str) -> str:
    """Of a key that is called by its name."""
    return f"{name}:{hashlib.sha256(name.encode()).hexdigest()}\n"


def replace(path: Path, text: str) -> None:
    """As an editor or a deployment does."""
    path.with_name("new").write_text(text)
    path.with_name("new").rename(path)


def status(server, key: str) -> int:
    return server.request("GET", "/v2", headers={"authorization": f"Bearer {key}"})[0]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_key_that_is_withdrawn_is_refused_on_open_connections_too(start, discrete, tmp_path, workers):
    (tmp_path / "keys").write_text(line("old"))
    with start(discrete, "--keys", str(tmp_path / "keys"), "--workers", workers) as server:
        lines = server.follow()
        with closing(server.connect()) as connection:

            def ask(key: str) -> int:
                connection.request("GET", "/v2", headers={"authorization": f"Bearer {key}"})
                with connection.getresponse() as answer:
                    answer.read()
                    return answer.status

            assert (ask("old"), ask("new")) == (200, 401)
            socket = connection.sock
            replace(tmp_path / "keys", line("new"))
            wait_for(lambda: ask("old") == 401)
            assert ask("new") == 200
            assert connection.sock is socket
        for _ in range(20):  # other connections, of other workers
            wait_for(lambda: (status(server, "old"), status(server, "new")) == (401, 200))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
    wait_for(lambda: len(lines) == 2)
    assert lines == ["the keys were read again\n", "stopped\n"]


def test_grpc_has_the_same_keys(start, discrete, tmp_path):
    grpc = pytest.importorskip("grpc")
    from trpo_tf.serving.codecs.grpc_messages import SERVER_METADATA

    (tmp_path / "keys").write_text(line("old"))
    with (
        start(discrete, "--keys", str(tmp_path / "keys"), "--grpc-port", "0") as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        method = channel.unary_unary(SERVER_METADATA.path)

        def code(key: str) -> str:
            try:
                method(b"", metadata=[("authorization", f"Bearer {key}")], timeout=10)
            except grpc.RpcError as error:
                return error.code().name
            return "OK"

        assert (code("old"), code("new")) == ("OK", "UNAUTHENTICATED")
        replace(tmp_path / "keys", line("new"))
        wait_for(lambda: code("old") == "UNAUTHENTICATED")
        assert code("new") == "OK"


def test_a_mounted_secret_is_followed_through_its_link(start, discrete, tmp_path):
    """As Kubernetes has it: `keys` is a link to `..data/keys`, and `..data` one that is replaced."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(line(name))
    (tmp_path / "..data").symlink_to("old")
    (tmp_path / "keys").symlink_to("..data/keys")
    with start(discrete, "--keys", str(tmp_path / "keys")) as server:
        assert status(server, "old") == 200
        (tmp_path / "..tmp").symlink_to("new")
        (tmp_path / "..tmp").rename(tmp_path / "..data")
        wait_for(lambda: status(server, "old") == 401)
        assert status(server, "new") == 200


@pytest.mark.parametrize(("workers", "wrong"), [("1", ""), ("1", None), ("2", "nonsense\n")])
def test_a_wrong_file_leaves_the_old_keys_in_force_and_is_told_once(start, discrete, tmp_path, wrong, workers):
    path = tmp_path / "keys"
    path.write_text(line("old"))
    with start(discrete, "--keys", str(path), "--workers", workers) as server:
        lines = server.follow()
        path.unlink() if wrong is None else replace(path, wrong)
        wait_for(lambda: lines)
        assert re.match(rf"the keys stay as they were: .*{re.escape(str(path))}", lines[0])
        if workers == "2":  # one that starts now has them as well
            os.kill(int(children_of(server.process.pid)[0]), signal.SIGKILL)
            wait_for(lambda: len(lines) == 2)
            assert "another takes its place" in lines[1]
            time.sleep(2)
        for _ in range(10):
            assert (status(server, "old"), status(server, "new")) == (200, 401)
        time.sleep(1.5)
        expected = 1 if workers == "1" else 2
        assert [told for told in lines[expected:] if "stay as they were" not in told] == []
        replace(path, line("new"))
        wait_for(lambda: (status(server, "old"), status(server, "new")) == (401, 200))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_reads_them_at_once(start, discrete, tmp_path, workers):
    path = tmp_path / "keys"
    path.write_text(line("old"))
    with start(discrete, "--keys", str(path), "--workers", workers) as server:
        lines = server.follow()
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: lines == ["the keys were read again, and are the same\n"])
        path.write_text("nonsense")
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: len(lines) > 1)
        assert lines[1].startswith("the keys stay as they were: ")
        assert status(server, "old") == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_new_certificate_is_shown_and_a_wrong_one_is_not(start, discrete, certificates, tmp_path, workers):
    def copy(name: str) -> str:
        for kind, target in (("pem", "cert"), ("key", "key")):
            replace(tmp_path / target, (certificates / f"{name}.{kind}").read_text())
        return (certificates / f"{name}.pem").read_text().strip()

    def shown() -> str:
        return ssl.get_server_certificate(("127.0.0.1", server.port), timeout=10).strip()

    first = copy("server")
    options = ("--tls-cert", str(tmp_path / "cert"), "--tls-key", str(tmp_path / "key"), "--workers", workers)
    with start(discrete, *options) as server:
        lines = server.follow()
        assert shown() == first
        replace(tmp_path / "cert", "nonsense")
        wait_for(lambda: lines)
        assert lines[0].startswith("the certificates stay as they were: ")
        assert shown() == first
        second = copy("client")
        wait_for(lambda: shown() == second)
        for _ in range(10):
            wait_for(lambda: shown() == second)
        wait_for(lambda: len(lines) == 2)  # by the worker that also tells the parent
        if workers == "2":  # one that starts now has it as well, though the file is wrong again
            replace(tmp_path / "cert", "nonsense")
            wait_for(lambda: len(lines) == 3)
            os.kill(int(children_of(server.process.pid)[0]), signal.SIGKILL)
            wait_for(lambda: len(lines) == 4)
            assert "another takes its place" in lines[3]
            time.sleep(1)
            assert {shown() for _ in range(10)} == {second}


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_a_file_that_is_being_written_is_not_read_before_it_is_whole(tmp_path):
    """A certificate and its key are two files: between their replacements they do not fit."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("1"), second.write_text("1")
    read: list[str] = []

    def reload() -> bool:
        read.append(first.read_text() + second.read_text())
        return read[-1] != read[0]

    changed = threading.Event()
    Reloader([Followed("files", (str(first), str(second)), reload)], changed.set, logs=False).start()
    wait_for(lambda: read == ["11"])
    for number in range(8):
        replace(first, f"2{number}")
        time.sleep(0.1)
    replace(first, "2"), replace(second, "2")
    assert changed.wait(5)
    assert read == ["11", "22"]
