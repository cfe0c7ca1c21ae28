"""Certificates: what can't be used is one line, and what is replaced is in force for the next connection."""

import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack, suppress

import pytest

from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.listening.tls import Tls
from trpo_tf.serving.options import ServeOptions


def openssl(folder, *arguments):
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def bad_files(certificates, tmp_path_factory):
    """Files that are no certificate or key, or not the right ones."""
    folder = tmp_path_factory.mktemp("bad")
    key = certificates / "server.key"
    openssl(folder, "pkey", "-in", str(key), "-aes256", "-passout", "pass:x", "-out", "encrypted")
    openssl(folder, "ec", "-in", str(key), "-aes128", "-passout", "pass:x", "-out", "encrypted-old")
    openssl(folder, "x509", "-in", str(certificates / "server.pem"), "-outform", "DER", "-out", "der")
    (folder / "request.cnf").write_text(
        "[ca]\ndefault_ca=a\n[a]\nnew_certs_dir=.\ndatabase=db\nserial=serial\npolicy=p\n[p]\n"
    )
    (folder / "db").touch()
    (folder / "serial").write_text("01")
    openssl(folder, "req", "-new", "-key", str(key), "-subj", "/CN=old", "-out", "request")
    period = ("-startdate", "20200101000000Z", "-enddate", "20200201000000Z", "-md", "sha256", "-batch")
    openssl(
        folder,
        "ca",
        "-config",
        "request.cnf",
        "-selfsign",
        "-keyfile",
        str(key),
        "-in",
        "request",
        *period,
        "-out",
        "expired",
    )
    (folder / "empty").touch()
    (folder / "half").write_bytes((certificates / "server.pem").read_bytes()[:200])
    (folder / "text").write_text("hello\n")
    (folder / "huge").write_bytes(b"-----BEGIN " + b"x" * 2**21)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    return folder


WRONG = [
    ("tls_key", "encrypted", "is encrypted; decrypt it first"),
    ("tls_key", "encrypted-old", "is encrypted; decrypt it first"),
    ("tls_key", "../stranger.key", "the key is not this certificate's"),
    ("tls_cert", "expired", "has expired"),
    *(
        (option, name, message)
        for option in ("tls_cert", "tls_key", "tls_client_ca")
        for name, message in (
            ("empty", "is not PEM"),
            ("text", "is not PEM"),
            ("der", "is not PEM"),
            ("huge", "has more than 1048576 bytes"),
            ("half", "can't be used"),
            ("folder", "can't read|is not a regular file"),
            ("pipe", "is not a regular file"),
            ("absent", "can't read the TLS file .*: no such file"),
        )
    ),
]


@pytest.mark.parametrize(("option", "name", "message"), WRONG)
def test_a_file_that_cannot_be_used_is_said_so(certificates, bad_files, option, name, message):
    path = certificates / name[3:] if name.startswith("../") else bad_files / name
    good = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
    files = {key: str(certificates / value) for key, value in good.items()} | {option: str(path)}
    with pytest.raises(ServeError, match=message) as refused:
        Tls(ServeOptions(**files))
    assert "\n" not in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("grpc_port", [[], ["--grpc-port", "0"]])
@pytest.mark.parametrize("name", ["encrypted", "folder", "empty"])
def test_nothing_is_asked_on_the_terminal(discrete, certificates, bad_files, name, grpc_port):
    """In a session with a terminal OpenSSL would ask there for the pass phrase, and wait."""
    if grpc_port:
        pytest.importorskip("grpc")
    pty = pytest.importorskip("pty")
    main, other = pty.openpty()
    key, certificate = str(bad_files / name), str(certificates / "server.pem")
    command = [
        sys.executable,
        "-m",
        "serving",
        str(discrete),
        "--port",
        "0",
        "--tls-cert",
        certificate,
        "--tls-key",
        key,
    ]
    done = subprocess.run(
        [*command, *grpc_port],
        stdin=other,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
        start_new_session=True,
    )
    os.close(main)
    os.close(other)
    assert (done.returncode, done.stderr.count("\n"), done.stderr[:7]) == (2, 1, "error: ")


def new_pair(folder, authority, name):
    """A certificate and key that the authority signs."""
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    signed = ("-CA", str(authority / "ca.pem"), "-CAkey", str(authority / "ca.key"))
    names = ("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1")
    openssl(folder, *new, *signed, *names, "-keyout", "tls.key", "-out", "tls.crt")


def shown_by(port, certificates, client=None):
    """The common name of the certificate that the server shows; None if it lets nobody in."""
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    if client:
        context.load_cert_chain(certificates / f"{client}.pem", certificates / f"{client}.key")
    with suppress(OSError), ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        secure = stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
        secure.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        if secure.recv(1):  # over TLS 1.3 a client hears that its certificate was refused when it reads
            return dict(pair[0] for pair in secure.getpeercert()["subject"])["commonName"]
    return None


def over_grpc(port, certificates, client=None):
    """Whether a call gets through."""
    import grpc

    from trpo_tf.serving.codecs.grpc_messages import SERVER_LIVE

    own = [(certificates / f"{client}.{kind}").read_bytes() for kind in ("key", "pem")] if client else []
    credentials = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes(), *own)
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        try:
            channel.unary_unary(SERVER_LIVE.path)(b"", timeout=5)
        except grpc.RpcError:
            return False
        return True


def grpc_certificate(port, certificates):
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("127.0.0.1", port), 10)
    with plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
        return dict(pair[0] for pair in secure.getpeercert()["subject"])["commonName"]


@pytest.fixture
def mounted(certificates, tmp_path):
    """A folder as Kubernetes mounts a secret, and what replaces its files at once by a link."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def replace(name, change=lambda version: None):
        version = folder / f"..{name}"
        version.mkdir()
        new_pair(version, certificates, name)
        change(version)
        (folder / "..new").symlink_to(version.name)
        (folder / "..new").rename(folder / "..data")

    replace("first")
    for name in ("tls.crt", "tls.key"):
        (folder / name).symlink_to(f"..data/{name}")
    return folder, replace


AGAIN, KEPT = "the certificates were read again", "the certificates stay as they were: "


def told(server):
    """What the server says next of its certificates, which it looks at again and again."""
    return server.process.stderr.readline().rstrip("\n")


def test_a_new_certificate_is_shown_to_the_next_connection(start, discrete, certificates, mounted):
    pytest.importorskip("grpc")
    folder, replace = mounted
    own = ("--tls-cert", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key"))
    with start(discrete, "--grpc-port", "0", *own) as server, ExitStack() as stack:
        trusting = ssl.create_default_context(cafile=certificates / "ca.pem")
        kept = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=trusting)
        stack.callback(kept.close)

        def both():
            return shown_by(server.port, certificates), grpc_certificate(server.grpc_port, certificates)

        kept.request("GET", "/v2/health/live")
        assert kept.getresponse().read()
        assert both() == ("first", "first")
        server.process.send_signal(signal.SIGHUP)
        assert told(server) == f"{AGAIN}, and are the same"
        replace("second")
        assert told(server) == AGAIN
        assert both() == ("second", "second")
        # Half a rotation: the key is another one's. Half a file. A file that is gone.
        replace("third", lambda version: shutil.copy(folder / "..second/tls.key", version / "tls.key"))
        said = told(server)
        assert said.startswith(KEPT)
        assert "the key is not this certificate's" in said
        replace("fourth", lambda version: (version / "tls.crt").write_bytes((version / "tls.crt").read_bytes()[:150]))
        assert "can't be used" in told(server)
        replace("fifth", lambda version: (version / "tls.key").unlink())
        assert "can't read" in told(server)
        assert both() == ("second", "second")
        kept.request("GET", "/v2/health/live")
        assert kept.getresponse().status == 200, "a connection lasts"
        replace("sixth")
        assert told(server) == AGAIN
        assert both() == ("sixth", "sixth")
        assert over_grpc(server.grpc_port, certificates)


def test_client_certificates_are_asked_for_at_all_times(start, discrete, certificates, tmp_path):
    """Also after the authority was replaced by another one, or by what is none."""
    pytest.importorskip("grpc")
    authority = tmp_path / "authority.pem"
    shutil.copy(certificates / "ca.pem", authority)
    own = ("--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    options = ("--grpc-port", "0", *own, "--tls-client-ca", str(authority))
    with start(discrete, *options) as server:

        def let_in():
            over_http = {who for who in ("client", "stranger", None) if shown_by(server.port, certificates, who)}
            over = {who for who in ("client", "stranger", None) if over_grpc(server.grpc_port, certificates, who)}
            assert over_http == over
            return over

        assert let_in() == {"client"}
        authority.write_bytes(b"")
        assert "is not PEM" in told(server)
        assert let_in() == {"client"}
        shutil.copy(certificates / "stranger.pem", authority)
        assert told(server) == AGAIN
        assert let_in() == {"stranger"}


def test_silent_connections_go_for_those_that_speak(start, discrete, certificates, scrape):
    """More of them than there may be files; each is counted from its first moment."""
    own = ("--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (320, 320))\n"
    code += "import sys, trpo_tf.serving.__main__\nsys.exit(trpo_tf.serving.__main__.main(sys.argv[1:]))"
    with start(discrete, *own, "--max-connections", "100", code=code) as server, ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10)) for _ in range(400)]
        for place, connection in enumerate(silent):
            if place % 2:
                connection.sendall(b"\x16\x03\x01")  # the beginning of a handshake
        for _ in range(10):
            assert shown_by(server.port, certificates) == "server"
        answers = read_metrics(server.port, certificates)
        assert float(answers["trpo_tf_connections"]) <= 101
        assert float(answers["trpo_tf_connections_evicted_total"]) >= 300
        status, said = server.stop(signal.SIGTERM)
    assert (status, said.count("too many TLS connections")) == (0, 1)


def read_metrics(port, certificates):
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    finally:
        connection.close()


def test_what_is_no_handshake_ends_its_connection_alone(start, discrete, certificates):
    own = ("--tls-cert", str(certificates / "server.pem"), "--tls-key", str(certificates / "server.key"))
    with start(discrete, *own, "--timeout", "2") as server:
        for said in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"x" * 70_000, b"\x00" * 100, b""):
            with socket.create_connection(("127.0.0.1", server.port), 10) as connection:
                with suppress(OSError):
                    connection.sendall(said)
                began = time.monotonic()
                with suppress(ConnectionError):
                    while connection.recv(1000):
                        pass
                assert time.monotonic() - began < 8
        for method in ("GET", "PATCH"):
            plain = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            plain.request(method, "/v2/models/x/infer", body=b"x" * 3000)
            response = plain.getresponse()
            assert (response.status, response.read()) == (
                400,
                b'{"error":"this port speaks HTTPS; begin the URL with https://"}',
            )
            plain.close()
        assert shown_by(server.port, certificates) == "server"
        assert server.stop(signal.SIGTERM) == (0, "")
