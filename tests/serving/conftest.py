import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import BUNDLES
from tests.support.serving.followed import put
from tests.support.serving.server import Server, serve
from trpo_tf.serving.bundle.golden import read_golden
from trpo_tf.serving.bundle.manifest import read_manifest
from trpo_tf.serving.repository.canary import make_release
from trpo_tf.serving.repository.catalog import Catalog
from trpo_tf.serving.repository.discovery import resolve_source
from trpo_tf.serving.repository.loading import load_model


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


@pytest.fixture
def models(discrete, tmp_path) -> Path:
    """A repository with version 1 of a model, walk."""
    put(discrete, tmp_path / "models" / "walk" / "1")
    return tmp_path / "models"


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
