"""A codec of another package, which `--codec` names."""

import os
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from tests.support.processes.added_packages import environment, install
from trpo_tf.serving import load

PAGE = "own-codec"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder in which the package of the page is installed."""
    install(tmp_path / "site", PAGE)
    monkeypatch.setenv("PYTHONPATH", environment(tmp_path / "site")["PYTHONPATH"])
    return tmp_path / "site"


def ask(server, path, body):
    with closing(server.connect()) as connection:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, response.headers["content-type"], response.read()


def test_an_added_codec_acts_as_the_policy_and_its_errors_are_the_clients(site, start, bundle):
    policy = load(bundle)
    (spec,) = policy.manifest.observation
    observations = np.linspace(-1, 1, 3 * spec.shape[0], dtype=spec.dtype).reshape(3, -1)
    lines = [",".join(map(str, row)) for row in observations.tolist()]
    with start(bundle, "--codec", "csv", "--max-batch", "3") as server:
        for path in (f"/csv/models/{policy.manifest.name}/act", f"/csv/models/{policy.manifest.name}/versions/1/act"):
            status, kind, answer = ask(server, path, "\n".join(lines))
            assert (status, kind) == (200, "text/csv")
            actions = np.array([line.split(b",") for line in answer.splitlines()], np.float64)
            expected = policy.act_batch(observations)
            np.testing.assert_array_equal(actions, expected.reshape(3, -1))
        too_many, uneven = "\n".join([*lines, lines[0]]), "\n".join([*lines[:2], lines[2] + ",1"])
        for wrong in ("", "spam", ",".join(lines), too_many, uneven):
            status, _, answer = ask(server, path, wrong)
            assert status == 400, (wrong, answer)
        assert ask(server, path, lines[0])[0] == 200
        status, _, answer = ask(server, "/csv/models/other/act", lines[0])
        assert (status, answer) == (404, b'{"error":"there is no model \'other\'"}')


def test_the_document_of_the_routes_has_an_added_codec(site, start, discrete):
    with start(discrete, "--codec", "csv") as server:
        paths = server.request("GET", "/openapi.json")[1]["paths"]
    added = {path for path in paths if path.startswith("/csv/")}
    assert added == {"/csv/models/discrete/act", "/csv/models/discrete/versions/1/act"}
    assert list(paths["/csv/models/discrete/act"]) == ["post"]


def test_an_installed_codec_is_served_only_where_it_is_asked_for(site, start, discrete):
    with start(discrete) as server:
        assert ask(server, "/csv/models/discrete/act", "0,0,0,0")[0] == 404


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("arguments", "value", "message"),
    [
        (["--codec", "cvs"], None, "--codec 'cvs' is unknown; choose one of csv"),
        (["--codec", "csv", "--codec", "csv"], None, "--codec csv: /csv/models/MODEL/act is served already"),
        (
            ["--codec", "csv"],
            "csv_codec:CsvEndpoint",
            "group trpo_tf.codecs must be of type Protocol, not <class",
        ),
    ],
)
def test_a_codec_that_can_not_be_served_ends_the_start(tmp_path, discrete, arguments, value, message, workers):
    install(tmp_path, PAGE, value)
    done = subprocess.run(
        [sys.executable, "-m", "trpo_tf", "serve", str(discrete), "--port", "0", "--workers", workers, *arguments],
        env={**os.environ, **environment(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
