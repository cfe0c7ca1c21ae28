"""What a browser may ask: by which Host, from which other sites; on raw sockets, and in Chromium."""

import json
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.serving.server import serve
from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.rest.cross_origin import host_check

INFER = "/v2/models/discrete/infer"
BODY = {"inputs": [{"name": "obs", "shape": [1, 4], "datatype": "FP32", "data": [0.1, -0.2, 0.05, 0.3]}]}
APP = "https://app.example"


def raw(server, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def status_for(server, target=INFER, method="POST", host=None, **headers: str) -> int:
    body = json.dumps(BODY) if method == "POST" else ""
    lines = [f"Host: {host or f'127.0.0.1:{server.port}'}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"{method} {target} HTTP/1.1", *lines])
    return int(raw(server, f"{head}\r\n\r\n{body}".encode())[9:12])


# Host


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        *[(host, True) for host in ("127.0.0.1", "127.0.0.1:1", "127.8.9.10:80", "localhost", "LocalHost:99", "[::1]")],
        *[(host, True) for host in ("[::1]:8080", "a.localhost", "localhost.", "serving", "serving:8080", "")],
        *[(host, False) for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1", "1.1")],
        *[(host, False) for host in ("localhost.evil.example", "[::2]", "a@127.0.0.1", "127.0.0.1:80:80", "0.0.0.0")],
        *[(host, False) for host in ("evil.example.", "notlocalhost.example", "127.0.0.1/", "[::1].evil.example", "[")],
    ],
)
def test_a_foreign_host_is_refused_on_loopback(server, host, is_allowed):
    """As a page has it whose name was made to mean this machine; other routes are no different."""
    expected = 200 if is_allowed else 403
    assert status_for(server, host=host or " ") == expected
    assert status_for(server, "/v2/health/live", "GET", host=host or " ") == expected


def test_a_refusal_says_what_the_proxy_or_the_server_needs(server):
    def error(**headers):
        return server.request("POST", INFER, BODY, headers)[1]["error"]

    assert error(Host="policies.example") == (
        "Host 'policies.example' is none of this server's names; add its name with --allow-host"
    )
    assert error(Host="policy", Origin=APP) == (
        "pages of other sites may not ask: Origin 'https://app.example' is not of Host 'policy'; let the proxy pass "
        "the browser's Host on, or allow the origin with --cors-origin"
    )


def test_the_target_goes_before_the_header(server):
    for target, status in ((f"http://evil.example{INFER}", 403), (f"http://127.0.0.1:9{INFER}", 200)):
        assert status_for(server, target) == status
    assert status_for(server, f"http://127.0.0.1{INFER}", host="evil.example") == 403


def test_which_hosts_are_checked_is_decided_by_who_may_ask():
    def allows(asked: bytes, **options) -> bool:
        return host_check(ServeOptions(**options))(asked)

    assert not allows(b"evil.example")
    assert allows(b"Policies.Example:1", allow_host=("policies.example",))
    assert not allows(b"evil.example", allow_host=("policies.example",))
    assert allows(b"evil.example", keys="keys")
    assert not allows(b"evil.example", keys="keys", allow_host=("policies.example",))
    assert allows(b"evil.example", host="0.0.0.0", insecure=True)
    others = {"host": "0.0.0.0", "insecure": True, "allow_host": ("policies.example",)}
    assert not allows(b"evil.example", **others)
    assert allows(b"10.1.2.3:8080", **others), "as probes have it"
    assert not allows(b"evil.example", uds="/tmp/socket", port=8080)


@pytest.mark.parametrize(
    "options",
    [
        {"allow_host": ("http://a.example",)},
        {"allow_host": ("a.example:80",)},
        {"allow_host": ("*",)},
        {"cors_origin": ("a.example",)},
        {"cors_origin": ("https://a.example/",)},
        {"cors_origin": ("null",)},
    ],
)
def test_what_is_no_name_and_no_origin_is_said_at_once(options):
    with pytest.raises(ServeError, match=r"--(allow-host|cors-origin) takes"):
        ServeOptions(**options)


def test_over_a_unix_socket_the_host_is_free(controlled):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(controlled))
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: evil.example\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


# Origin


@pytest.fixture(scope="module")
def sharing(discrete, tmp_path_factory):
    """A server that lets two sites ask, and wants a key."""
    folder = tmp_path_factory.mktemp("sharing")
    made = subprocess.run(
        [sys.executable, "-m", "trpo_tf.serving.keys", "app"], capture_output=True, text=True, timeout=30, check=True
    )
    (folder / "keys").write_text(made.stdout)
    arguments = (
        "--keys",
        str(folder / "keys"),
        "--cors-origin",
        f"{APP},https://b.example",
        "--cors-origin",
        "app://c",
    )
    with serve(discrete, folder, *arguments) as running:
        running.key = made.stderr.strip()
        yield running


def test_pages_of_other_sites_are_refused(server):
    own = f"http://127.0.0.1:{server.port}"
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://localhost:{server.port}", "", "x"):
        assert status_for(server, Origin=origin) == 403, origin
        assert status_for(server, "/v2", "GET", Origin=origin) == 403, origin
        assert status_for(server, INFER, "OPTIONS", Origin=origin, Access_Control_Request_Method="POST") == 403
    assert status_for(server, Origin=own) == 200
    assert status_for(server, Origin=own.upper().replace("HTTP", "http")) == 200
    assert status_for(server, host="localhost", Origin="http://localhost:80") == 200
    assert status_for(server, Origin="https://behind.example", Sec_Fetch_Site="same-origin") == 200
    assert status_for(server, Origin=f"{own}, http://evil.example") == 403
    for state in ("cross-site", "same-site", "none"):
        assert status_for(server, Origin="https://behind.example", Sec_Fetch_Site=state) == 403


def test_a_preflight_needs_no_key_and_says_what_may_be_asked(sharing):
    asked = f"OPTIONS {INFER} HTTP/1.1\r\nHost: x\r\nOrigin: {APP}\r\nAccess-Control-Request-Method: POST\r\n"
    answer = raw(sharing, f"{asked}Access-Control-Request-Headers: authorization\r\n\r\n".encode()).decode()
    head, _, body = answer.partition("\r\n\r\n")
    headers = dict(re.findall(r"^([\w-]+): (.*?)\r?$", head, re.MULTILINE))
    assert (head[9:12], body) == ("204", "")
    assert headers["access-control-allow-origin"] == APP
    assert headers["access-control-allow-methods"] == "GET, HEAD, POST"
    assert headers["vary"] == "origin"
    assert int(headers["access-control-max-age"]) > 0
    allowed = headers["access-control-allow-headers"].split(", ")
    assert {"authorization", "content-type", "inference-header-content-length", "traceparent"} < {*allowed}
    assert "content-length" not in headers
    assert "private-network" not in head
    answer = raw(sharing, f"{asked}Access-Control-Request-Private-Network: true\r\n\r\n".encode())
    assert b"\r\naccess-control-allow-private-network: true\r\n" in answer


def test_allowed_sites_may_read_answers_and_errors(sharing):
    for key, status in ((sharing.key, 200), ("wrong", 401)):
        for origin in (APP, "https://b.example", "app://c"):
            body = json.dumps(BODY)
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer {key}\r\n"
            answer = raw(sharing, f"{head}Origin: {origin}\r\n\r\n{body}".encode())
            assert int(answer[9:12]) == status
            assert f"\r\naccess-control-allow-origin: {origin}\r\n".encode() in answer
            assert b"\r\naccess-control-expose-headers: inference-header-content-length" in answer
    assert b"\r\nvary: origin\r\n" in raw(sharing, b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status_for(sharing, Origin="https://c.example", Authorization=f"Bearer {sharing.key}") == 403


def test_a_star_lets_any_page_ask(start, discrete):
    with start(discrete, "--cors-origin", "*") as server:
        for origin in ("null", "https://any.example"):
            answer = raw(server, b"GET /v2 HTTP/1.1\r\nHost: x\r\nOrigin: %b\r\n\r\n" % origin.encode())
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"\r\naccess-control-allow-origin: *\r\n" in answer
        assert status_for(server, host="evil.example", Origin="http://evil.example") == 403


def test_options_says_the_methods(server, sharing):
    for target, allowed in ((INFER, "POST, OPTIONS"), ("/v2", "GET, HEAD, OPTIONS"), ("*", "GET, HEAD, POST, OPTIONS")):
        answer = raw(
            server, f"OPTIONS {target} HTTP/1.1\r\nHost: x\r\n\r\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"204", b"200"]
        assert f"\r\nallow: {allowed}\r\n".encode() in answer
    assert status_for(server, "/nothing", "OPTIONS") == 404
    assert status_for(sharing, INFER, "OPTIONS") == 401
    assert status_for(sharing, "*", "OPTIONS") == 204


# In a browser


@contextmanager
def state():
    """A page of another site: the same machine at another port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>app</title>")

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def asked_by_a_page(tab, server, key: str = "") -> str:
    """What a script of the page that is open gets: the status and the body's beginning, or the error."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    options = json.dumps({"method": "POST", "headers": headers, "body": json.dumps(BODY)})
    url = f"http://127.0.0.1:{server.port}{INFER}"
    then = "async answer => answer.status + ' ' + (await answer.text()).slice(0, 13)"
    return tab.evaluate(f"fetch('{url}', {options}).then({then}, error => String(error))")


def test_a_page_of_another_site_asks_in_chromium(start, discrete, server, sharing, tmp_path):
    from tests.support.serving.browser import browse

    keys = str(sharing.process.args[sharing.process.args.index("--keys") + 1])
    with state() as origin, browse(tmp_path / "profile") as tab:
        tab.open(origin)
        tab.wait("document.title == 'app'")
        assert asked_by_a_page(tab, server) == "TypeError: Failed to fetch"
        with start(discrete, "--cors-origin", origin) as allowed:
            assert asked_by_a_page(tab, allowed) == '200 {"model_name"'
        with start(discrete, "--cors-origin", origin, "--keys", keys) as allowed:
            assert asked_by_a_page(tab, allowed, sharing.key) == '200 {"model_name"'
            assert asked_by_a_page(tab, allowed, "wrong").startswith('401 {"error":')
