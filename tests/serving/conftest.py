import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from trpo_tf.serving.bundle.golden import read_golden
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.repository.catalog import Catalog
from trpo_tf.serving.repository.discovery import resolve_source
from trpo_tf.serving.repository.loading import load_model
from trpo_tf.serving.repository.repository import make_release

BUNDLES = Path(__file__).parent / "bundles"
START_SECONDS = 30


class Server:
    """A real server process: `stop()` it with a signal, `request()` from it."""

    def __init__(self, process: subprocess.Popen, port: int, announcement: str, warnings: str):
        self.process, self.port, self.announcement, self.warnings = process, port, announcement, warnings
        over_grpc = re.search(r"grpcs?://[^ ]*:(\d+)", announcement)
        self.grpc_port = int(over_grpc[1]) if over_grpc else None

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def request(self, method: str, path: str, body=None, headers=None):
        """Status and parsed JSON."""
        connection = self.connect()
        try:
            connection.request(method, path, json.dumps(body) if isinstance(body, dict) else body, headers or {})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or "null")
        finally:
            connection.close()

    def follow(self) -> list[str]:
        """What it writes on stderr from now on, as it comes; no `stop` then."""
        lines: list[str] = []

        def read(stream) -> None:
            with stream:
                lines.extend(iter(stream.readline, ""))

        threading.Thread(target=read, args=[os.fdopen(os.dup(self.process.stderr.fileno()))], daemon=True).start()
        return lines

    def stop(self, number: int) -> tuple[int, str]:
        """Exit status, and what it wrote on stderr since it started, but for its farewell."""
        self.process.send_signal(number)
        return self.process.wait(10), self.process.stderr.read().removesuffix("stopped\n")


@contextmanager
def serve(bundle: Path, folder: Path, *arguments: str, code: str | None = None):
    """A server of the bundle, on a free port; run by `code` rather than `trpo-tf serve`, if given."""
    program = ["-m", "trpo_tf", "serve"] if code is None else ["-c", code]
    command = [sys.executable, *program, str(bundle), "--port", "0", *arguments]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            before = []  # what it says of models that it refuses
            while (line := process.stderr.readline()) and "serving " not in line:
                before.append(line)
            port = re.search(r"https?://[^ ]*:(\d+)", line)
            assert port, f"it did not start: {''.join(before)}{line}"
            yield Server(process, int(port[1]), line, "".join(before))
        finally:
            process.kill()


@pytest.fixture(params=["discrete", "continuous"])
def bundle(request) -> Path:
    return BUNDLES / request.param


@pytest.fixture(scope="session")
def discrete() -> Path:
    return BUNDLES / "discrete"


@pytest.fixture(scope="session")
def continuous() -> Path:
    return BUNDLES / "continuous"


@pytest.fixture(scope="session")
def judged() -> Path:
    """A bundle whose graph answers more than the action."""
    return BUNDLES / "judged"


@pytest.fixture
def damaged(discrete, tmp_path) -> Path:
    """A copy of a bundle, to be damaged."""
    return Path(shutil.copytree(discrete, tmp_path / "damaged"))


@pytest.fixture
def start(tmp_path):
    """Starts a server of its own for one test: `with start(bundle) as server`."""
    return lambda bundle, *arguments, code=None: serve(bundle, tmp_path, *arguments, code=code)


@pytest.fixture(scope="session")
def server(discrete, tmp_path_factory):
    with serve(discrete, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def continuous_server(continuous, tmp_path_factory):
    with serve(continuous, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def controlled(discrete, tmp_path_factory) -> Path:
    """The Unix socket of a server of two bundles, which clients may tell to load and unload them."""
    folder = tmp_path_factory.mktemp("controlled")
    for bundle in ("continuous", "discrete"):
        shutil.copytree(discrete.parent / bundle, folder / "models" / bundle)
    path = folder / "socket"
    command = [sys.executable, "-m", "trpo_tf", "serve", str(folder / "models"), "--uds", str(path), "--repository-api"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr.readline() == f"serving continuous, discrete on unix:{path}\n"
            yield path
        finally:
            process.kill()


@pytest.fixture(scope="session")
def judged_server(judged, tmp_path_factory):
    with serve(judged, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def grpc_server(discrete, tmp_path_factory):
    pytest.importorskip("grpc")
    with serve(discrete, tmp_path_factory.mktemp("server"), "--grpc-port", "0") as running:
        yield running


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A certificate authority, a server's and a client's certificate that it signed, and a stranger's."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    for name in ("ca", "stranger"):
        openssl(*new, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    for name in ("server", "client"):
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
        openssl(*new, *signed, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
    return folder


@pytest.fixture
def run_python(tmp_path):
    """Runs code in a fresh interpreter, with an empty home folder, and returns its stdout."""
    home = tmp_path / "home"
    home.mkdir()

    def run(code: str, **environment: str) -> str:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("XDG_") and key != "ORT_DISABLE_TELEMETRY"
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=home,
            env={**kept, "HOME": str(home), **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.home = home
    return run


@pytest.fixture
def catalog_of():
    """The catalog of one bundle."""

    def make(bundle: Path) -> Catalog:
        model = load_model(resolve_source(bundle).only)
        return Catalog({model.name: make_release([model])})

    return make


@pytest.fixture
def golden():
    """Golden cases of a bundle."""

    def read(bundle: Path):
        return read_golden((bundle / "golden.npz").read_bytes(), read_manifest(bundle))

    return read


@pytest.fixture(scope="session")
def scrape():
    """Scrapes a server: the value of a sample by name and labels, or None if there is no such sample."""
    parse = pytest.importorskip("prometheus_client.parser").text_string_to_metric_families

    def read(server: Server, headers=None):
        connection = server.connect()
        connection.request("GET", "/metrics", headers=headers or {})
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        assert response.status == 200, text
        assert response.getheader("content-type").startswith("text/plain; version=0.0.4")
        samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in parse(text)
            for sample in family.samples
        }

        def value(name: str, **labels: str) -> float | None:
            return samples.get((name, frozenset(labels.items())))

        value.samples, value.text = samples, text
        return value

    return read
