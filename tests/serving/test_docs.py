"""docs/serving.md: its commands work as written, and its tables leave nothing out."""

import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest

import serving
from serving.control import control_routes
from serving.http import MAX_HEAD
from serving.limits import MAX_DEPTH
from serving.metrics import Metrics
from serving.options import ServeOptions
from serving.routes import make_routes

PAGE = (Path(serving.__file__).parents[1] / "docs" / "serving.md").read_text()

# A line with curl in it, and those that its quoted text goes on in.
COMMANDS = re.findall(r"^    ((?:[^\n|']*(?:'[^']*')?[^\n|]*\| )*curl (?:[^\n']|'[^']*')*)$", PAGE, re.MULTILINE)


def test_every_curl_line_is_found():
    assert len(COMMANDS) == sum("curl " in line for line in PAGE.splitlines() if line.startswith("    "))
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


def test_every_option_has_its_default_in_the_table():
    for option in dataclasses.fields(ServeOptions):
        flag = f"--{option.name.replace('_', '-')}"
        (row,) = (
            line
            for line in PAGE.splitlines()
            if line.startswith("| ") and re.search(rf"`{flag}[ `]", line.split("|")[1])
        )
        if option.name != "port" and option.default not in (None, False):
            default = option.default
            shown = f"{default:g}" if isinstance(default, float) else str(default)
            assert row.split("|")[2].strip().strip("`") == shown
    assert f"{MAX_HEAD // 1024} KiB (431)" in PAGE
    assert f"{MAX_DEPTH} levels" in PAGE


def test_every_route_is_in_the_table(discrete, catalog_of):
    catalog = catalog_of(discrete)
    routes = make_routes(catalog, ServeOptions(), Metrics())
    controlled = {
        path.replace("*/", "/v2/repository/models/discrete/") for path in control_routes(catalog, lambda *_: None)
    }
    documented = {
        path.replace("NAME", "discrete") for path in re.findall(r"^\| `(?:GET|POST) (\S+)`", PAGE, re.MULTILINE)
    }
    paths = {re.sub(r"^/console/\w+\.\w+$", "/console/FILE", path) for path in routes if "/versions/" not in path}
    assert documented == controlled | paths
