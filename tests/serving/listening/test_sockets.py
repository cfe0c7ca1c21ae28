"""Addresses and ports: what is listened on, what is refused, by real servers."""

import socket
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from trpo_tf.serving.command_line import parse_arguments
from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.listening.sockets import listen, listen_on_path
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.support.addresses import is_local, resolve, url_of

has_ipv6 = socket.has_ipv6
with suppress(OSError), socket.socket(socket.AF_INET6) as _probe:
    try:
        _probe.bind(("::1", 0))
    except OSError:
        has_ipv6 = False
needs_ipv6 = pytest.mark.skipif(not has_ipv6, reason="there is no IPv6 here")


def families_of(port):
    """Over which of IPv4 and IPv6 the port takes connections."""
    found = set()
    for host, name in (("127.0.0.1", "IPv4"), ("::1", "IPv6")):
        with suppress(OSError), socket.create_connection((host, port), 5):
            found.add(name)
    return found


@needs_ipv6
@pytest.mark.parametrize("workers", ["1", "3"])
@pytest.mark.parametrize(
    ("host", "families"),
    [("0.0.0.0", {"IPv4"}), ("::", {"IPv4", "IPv6"}), ("[::1]", {"IPv6"}), ("127.0.0.1", {"IPv4"})],
)
def test_http_and_grpc_listen_on_the_same_addresses(start, discrete, host, families, workers):
    pytest.importorskip("grpc")
    options = ("--host", host, "--insecure", "--grpc-port", "0", "--workers", workers)
    with start(discrete, *options) as server:
        assert families_of(server.port) == families
        assert families_of(server.grpc_port) == families
        shown = f"[{host.strip('[]')}]" if ":" in host else host
        assert f"http://{shown}:{server.port} and grpc://{shown}:{server.grpc_port}\n" in server.announcement


def test_a_name_stands_for_all_its_addresses(start, discrete):
    expected = {"IPv4" if address.family == socket.AF_INET else "IPv6" for address in resolve("localhost")}
    if not has_ipv6:
        expected.discard("IPv6")
    with start(discrete, "--host", "localhost") as server:
        assert families_of(server.port) == expected
        assert f"http://localhost:{server.port}" in server.announcement


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.1", True), ("localhost", True), ("0.0.0.0", False), ("192.0.2.1", False)],
)
def test_an_address_is_local_if_what_it_resolves_to_is(host, local):
    assert is_local(host) is local


@needs_ipv6
@pytest.mark.parametrize(
    ("host", "local"), [("::1", True), ("[::1]", True), ("::", False), ("::ffff:127.0.0.1", True), ("fd00::1", False)]
)
def test_an_ipv6_address_is_local_if_only_this_machine_reaches_it(host, local):
    assert is_local(host) is local


def test_a_url_has_its_address_in_brackets():
    assert url_of("http", "::1", 80) == url_of("http", "[::1]", 80) == "http://[::1]:80"
    assert url_of("grpc", "fe80::1%eth0", 80) == "grpc://[fe80::1%25eth0]:80"
    assert url_of("http", "a.example", 80) == "http://a.example:80"


@pytest.mark.parametrize("host", ["no.such.host.invalid", "[::", "a b", "::1]", "x" * 300, "é" * 80])
def test_a_host_that_is_none_is_said_so(host):
    with pytest.raises(ServeError, match=r"^--host .* can't be resolved: .*; give an address of this machine"):
        ServeOptions(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1:80", "localhost:80", "[::1]:80", "http://localhost", "http://[::1]/"])
def test_a_port_or_scheme_beside_the_host_is_said_so(host):
    with pytest.raises(ServeError, match="is more than an address; give that alone, and its port as --port"):
        ServeOptions(host=host)


def test_an_empty_host_is_refused():
    with pytest.raises(ServeError, match="--host is empty"):
        ServeOptions(host="")


@pytest.mark.parametrize(
    ("given", "port"), [(["--port", "7000"], None), ([], "7000"), (["--port", "7000", "--workers", "2"], None)]
)
def test_http_and_grpc_do_not_share_a_port(monkeypatch, given, port):
    monkeypatch.delenv("PORT", raising=False)
    if port:
        monkeypatch.setenv("PORT", port)
    with pytest.raises(ServeError, match="HTTP and gRPC can't share port 7000"):
        parse_arguments(["bundle", "--grpc-port", "7000", *given], "prog")
    monkeypatch.delenv("PORT", raising=False)
    with pytest.raises(ServeError, match="HTTP and gRPC can't share port 8080"):
        parse_arguments(["bundle", "--grpc-port", "8080"], "prog")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start_at_once(discrete, *options, count=4):
    """What each of several servers said first, that were started at the same time; all are ended."""
    command = [sys.executable, "-m", "trpo_tf", "serve", str(discrete), *options]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(count)]
    try:
        return [process.stderr.readline() for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            with process:
                process.wait(15)


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_of_servers_that_start_at_once_on_a_port_one_gets_it(discrete, tmp_path, option, workers):
    if option == "--grpc-port":
        pytest.importorskip("grpc")
    port = str(free_port())
    others = ("--port", "0") if option == "--grpc-port" else ()
    said = start_at_once(discrete, option, port, "--workers", workers, *others)
    refused = [line for line in said if line.startswith("error: ") and f"choose another {option}" in line]
    assert len(refused) == len(said) - 1, said
    assert sum(line.startswith("serving discrete on ") for line in said) == 1


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_that_another_would_share_is_refused(discrete, option, workers):
    """Whoever listens with SO_REUSEPORT would get a part of the clients."""
    if option == "--grpc-port":
        pytest.importorskip("grpc")
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = other.getsockname()[1]
        options = (option, str(port), "--workers", workers, *(("--port", "0") if option == "--grpc-port" else ()))
        command = [sys.executable, "-m", "trpo_tf", "serve", str(discrete), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    refusal = f"error: can't listen on 127.0.0.1 port {port}: address already in use; choose another {option}"
    assert (done.returncode, done.stderr) == (2, f"{refusal} (0: a free one)\n")


def test_workers_start_again_on_a_port_that_was_just_left(start, discrete):
    """Connections that have ended a moment ago don't keep it."""
    for _ in range(2):
        with start(discrete, "--workers", "2") as server:
            assert server.request("GET", "/v2")[0] == 200
            port = server.port
            server.stop(15)
        for own in listen("127.0.0.1", port, 2):
            for listener in own:
                listener.close()


def test_a_path_that_is_no_socket_is_kept(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, message in (
        ("file", "a file that is no socket"),
        ("folder", "a file that is no socket"),
        ("link", "address already in use"),
        ("absent/socket", "no such file or directory"),
        ("x" * 120, "path too long"),
        ("x" * 300, "name too long"),
    ):
        with pytest.raises(ServeError, match=message), listen_on_path(str(tmp_path / name)):
            pass
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "folder").is_dir()
    for path in ("", "a\0b"):
        with pytest.raises(ServeError, match="--uds is no path"), listen_on_path(path):
            pass


def test_a_socket_whose_server_is_too_busy_to_connect_to_is_not_taken(tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(path)
        busy.listen(0)
        waiting = []
        for _ in range(3):
            client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            client.setblocking(False)
            client.connect_ex(path)
            waiting.append(client)
        with pytest.raises(ServeError, match="address already in use"), listen_on_path(path):
            pass
        for client in waiting:
            client.close()


def test_of_threads_that_take_a_path_at_once_one_gets_it(tmp_path):
    path, outcomes, together = str(tmp_path / "socket"), [], threading.Barrier(6)

    def take():
        together.wait()
        try:
            with listen_on_path(path):
                outcomes.append("listens")
                together.wait(10)
        except ServeError:
            outcomes.append("refused")
            together.wait(10)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["listens", *["refused"] * 5]
