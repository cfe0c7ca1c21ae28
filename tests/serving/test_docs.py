"""The server's pages: their commands work as written, and their tables leave nothing out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from trpo_tf.serving.codecs.parsing.body_limits import MAX_DEPTH
from trpo_tf.serving.metrics.series import Metrics
from trpo_tf.serving.options import ServeOptions
from trpo_tf.serving.rest.model_repository import control_routes
from trpo_tf.serving.rest.request_reader import MAX_HEAD
from trpo_tf.serving.rest.routes import make_routes

DOCS = ROOT / "docs"
HTTP, GRPC, SERVER = ((DOCS / "reference" / "serve" / f"{name}.md").read_text() for name in ("http", "grpc", "server"))
MODELS = (DOCS / "howto" / "serve" / "serve-models.md").read_text()
PAGES = "\n".join(page.read_text() for page in sorted(DOCS.rglob("*.md")))

# A line with curl in it, and those that its quoted text goes on in.
COMMANDS = re.findall(r"^    ((?:[^\n|']*(?:'[^']*')?[^\n|]*\| )*curl (?:[^\n']|'[^']*')*)$", PAGES, re.MULTILINE)


def test_every_curl_line_is_found():
    assert len(COMMANDS) == sum("curl " in line for line in PAGES.splitlines() if line.startswith("    "))
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("command", COMMANDS)
def test_every_curl_line_works(server, controlled, command):
    here = command.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}").replace("/tmp/serving.sock", str(controlled))
    shown = here.replace("curl ", "curl -s -w '\\n%{http_code}' ", 1)
    done = subprocess.run(shown, shell=True, capture_output=True, timeout=20, check=True)
    body, _, status = done.stdout.rpartition(b"\n")
    if "-i" in command.split():
        assert status[:1] == b"4"
        assert list(json.loads(body.partition(b"\r\n\r\n")[2])) == ["error"]
    else:
        assert status == b"200", body
        assert body.startswith(b"# HELP" if "/metrics" in command else (b"{", b"["))


def test_the_python_snippet_of_grpc_works(grpc_server):
    pytest.importorskip("tritonclient.grpc")
    (snippet,) = re.findall(r"```python\n(import numpy, tritonclient.*?)```", GRPC, re.DOTALL)
    code = snippet.replace("127.0.0.1:8081", f"127.0.0.1:{grpc_server.grpc_port}")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[0 0]\n"), done.stderr


def test_every_method_and_status_of_grpc_is_in_a_table():
    """The statuses are those in the code; two come from gRPC itself."""
    grpc = pytest.importorskip("grpc")
    from trpo_tf.serving import grpc as package
    from trpo_tf.serving.codecs.grpc_messages import INFERENCE, SERVICES

    tables = re.findall(r"^\| (`[^|]*`) \|", GRPC, re.MULTILINE)
    shown = {name for cell in tables for name in re.findall(r"`([^`]*)`", cell)}
    others = {service.split(".")[-1]: names for service, names in SERVICES.items() if service != INFERENCE}
    methods = {*SERVICES[INFERENCE], *(f"{service}/{name}" for service in others for name in others[service])}
    files = Path(package.__file__).parent.glob("*.py")
    raised = {name for file in files for name in re.findall(r"StatusCode\.(\w+)", file.read_text())}
    assert shown == methods | (raised - {"OK"}) | {"RESOURCE_EXHAUSTED", "UNIMPLEMENTED"}
    assert all(hasattr(grpc.StatusCode, name) for name in raised)


def test_the_limits_of_a_head_and_of_json_are_those_of_the_code():
    assert f"{MAX_HEAD // 1024} KiB (431)" in SERVER
    assert f"{MAX_DEPTH} levels" in SERVER


def test_every_route_is_in_the_table(discrete, catalog_of):
    catalog = catalog_of(discrete)
    routes = make_routes(catalog, ServeOptions(), Metrics())
    controlled = {
        path.replace("*/", "/v2/repository/models/discrete/") for path in control_routes(catalog, lambda *_: None)
    }
    documented = {
        path.replace("NAME", "discrete")
        for path in re.findall(r"^\| `(?:GET|POST) (\S+)`", HTTP + MODELS, re.MULTILINE)
    }
    paths = {re.sub(r"^/console/\w+\.\w+$", "/console/FILE", path) for path in routes if "/versions/" not in path}
    assert documented == controlled | paths
