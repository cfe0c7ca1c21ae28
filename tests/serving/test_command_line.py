"""Options from the command line, the environment and a TOML file."""

import dataclasses
import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from trpo_tf import serving
from trpo_tf.serving.command_line import make_options, make_parser, parse_arguments
from trpo_tf.serving.errors import ServeError
from trpo_tf.serving.option_sources import from_environment, from_file, split_list
from trpo_tf.serving.options import ServeOptions, kinds

EXAMPLES = {
    "host": "::1",
    "out_of_bounds": "clip",
    "log_format": "json",
    "otlp_endpoint": "http://127.0.0.1:4318",
    "canary": "0.5",
}


def options(*arguments: str, **environment: str) -> ServeOptions:
    return make_options(vars(make_parser("serve").parse_args(["bundle", *arguments])), environment)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "trpo_tf", "serve", *arguments]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_every_option_can_be_set_in_the_environment_and_in_a_file(tmp_path):
    for name, kind in kinds().items():
        text = EXAMPLES.get(name, {bool: "1", int: "2", float: "3", tuple: "a,b"}.get(kind, "text"))
        expected = {bool: True, tuple: ("a", "b")}.get(kind) or kind(text)
        assert from_environment(kinds(), {f"TRPO_TF_{name.upper()}": text})[name].value == expected
        written = {bool: "true", tuple: '["a", "b"]', str: f'"{text}"'}.get(kind, text)
        (tmp_path / "file").write_text(f"{name.replace('_', '-')} = {written}")
        assert from_file(kinds(), tmp_path / "file")[name].value == expected


def test_command_line_goes_before_environment_before_file_before_default(tmp_path):
    file = tmp_path / "serving.toml"
    file.write_text('max-body = 1\nmax_batch = 1\nversions = 3\nhost = "::1"\nport = 5\naccess_log = true\n')
    environment = {"TRPO_TF_MAX_BODY": "2", "TRPO_TF_MAX_BATCH": "2", "TRPO_TF_CONFIG": str(file), "PORT": "6"}
    found = options("--max-body=3", **environment)
    assert (found.max_body, found.max_batch, found.versions, found.host) == (3, 2, 3, "::1")
    assert found.timeout == ServeOptions().timeout
    assert (found.port, options(PORT="6").port, options(PORT="6", TRPO_TF_PORT="7").port) == (5, 6, 7)
    assert options(f"--config={file}", TRPO_TF_CONFIG="/nowhere").versions == 3
    assert found.access_log
    assert not options("--no-access-log", **environment).access_log
    assert not options(TRPO_TF_ACCESS_LOG="off", TRPO_TF_CONFIG=str(file)).access_log


def test_an_empty_variable_sets_nothing():
    assert options(TRPO_TF_KEYS="", TRPO_TF_WORKERS="", TRPO_TF_CONFIG="", PORT="") == ServeOptions()


@pytest.mark.parametrize("variable", ["TRPO_TF_WORKER", "TRPO_TF_TLS_CERTIFICATE", "TRPO_TF_", "TRPO_TF_max_body"])
def test_an_unknown_variable_is_refused(variable):
    with pytest.raises(ServeError, match=f"no option {variable} in the environment; the nearest is TRPO_TF_[A-Z_]+$"):
        options(**{variable: "1"})
    with pytest.raises(ServeError, match=r"nearest is TRPO_TF_WORKERS$"):
        options(TRPO_TF_WORKER="2")


def test_what_kubernetes_sets_for_services_of_such_a_name_is_no_option():
    """As for services called trpo-tf, trpo-tf-grpc and trpo-tf-serving."""
    found = {}
    for service in ("TRPO_TF", "TRPO_TF_GRPC", "TRPO_TF_SERVING"):
        found |= {
            f"{service}_SERVICE_HOST": "10.0.0.1",
            f"{service}_SERVICE_PORT": "80",
            f"{service}_SERVICE_PORT_HTTP": "80",
            f"{service}_PORT": "tcp://10.0.0.1:80",
            f"{service}_PORT_80_TCP": "tcp://10.0.0.1:80",
            f"{service}_PORT_80_TCP_PROTO": "tcp",
            f"{service}_PORT_80_TCP_PORT": "80",
            f"{service}_PORT_80_TCP_ADDR": "10.0.0.1",
        }
    assert options(**found) == ServeOptions()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("PORT", "http", "TRPO_TF_PORT in the environment must be a whole number, not 'http'"),
        ("TIMEOUT", "1 s", "TRPO_TF_TIMEOUT in the environment must be a number, not '1 s'"),
        ("INSECURE", "maybe", "TRPO_TF_INSECURE in the environment must be 1, 0, true or false, not 'maybe'"),
        (
            "LOG_FORMAT",
            "xml",
            "--log-format must be one of text, json, not 'xml' (--log-format is",
        ),
        (
            "MAX_BODY",
            "-1",
            "--max-body must be more than 0, not -1 (--max-body is TRPO_TF_MAX_BODY in",
        ),
        ("OTLP_ENDPOINT", "http://[", "--otlp-endpoint must be a URL such as http://127.0.0.1:4318, not 'http://['"),
        ("OTLP_ENDPOINT", "http://a:b", "--otlp-endpoint must be a URL"),
        ("OTLP_ENDPOINT", "http://a:4318/v1/traces/", "--otlp-endpoint is the collector's address; leave out /v1/"),
        ("HOST", "*", "--host * is no address; :: is every address of this machine, 0.0.0.0 every IPv4 address"),
        ("HOST", "0.0.0.0", "anybody who reaches --host 0.0.0.0 could ask this server: give --keys"),
        ("CONFIG", "/dev/zero", "can't read --config /dev/zero: it is not a regular file"),
        ("CONFIG", "/nowhere", "can't read --config /nowhere: No such file or directory"),
        ("CONFIG", "/", "can't read --config /: it is not a regular file"),
    ],
)
def test_a_wrong_value_names_its_source(name, text, message):
    with pytest.raises(ServeError) as raised:
        options(**{f"TRPO_TF_{name}": text})
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-body = 'x'", "max-body in {} must be a whole number, not 'x'"),
        ("max_body = true", "max_body in {} must be a whole number, not True"),
        ("access-log = 1", "access-log in {} must be true or false, not 1"),
        ("keys = 1", "keys in {} must be text, not 1"),
        ("[limits]\nmax-body = 1", "there is no table limits in {}; put its options at the top"),
        ("[host]\nname = 1", "host in {} must be text, not {{'name': 1}}"),
        ("max-body = " + "[" * 5000, "--config {} is not TOML: "),
        ('keys = "a\\u0000b"', "--keys has a NUL character; leave it out (--keys is keys in {})"),
        ("max-boddy = 1", "there is no option max-boddy in {}; the nearest is max-body"),
        ("max-body = 1\nmax_body = 2", "max_body in {} is there twice; remove one of the two"),
        ("timeout = nan", "--timeout must be more than 0, not nan (--timeout is timeout in {})"),
        ("max-body", "--config {} is not TOML: "),
        (b"\xff\xfe\x00", "--config {} is not TOML: "),
    ],
)
def test_a_wrong_file_names_what_is_wrong(tmp_path, text, message):
    file = tmp_path / "serving.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ServeError) as raised:
        options(f"--config={file}")
    assert str(raised.value).startswith(message.format(file))


def test_a_file_from_a_windows_editor_is_read(tmp_path):
    (tmp_path / "file").write_bytes("\ufeffmax-body = 7\r\ntimeout = 8\r\n".encode())
    found = options(f"--config={tmp_path / 'file'}")
    assert (found.max_body, found.timeout) == (7, 8.0)


@pytest.mark.parametrize("name", [name for name, kind in kinds().items() if kind in (int, float)])
def test_a_number_is_refused_at_the_start_or_served(name):
    """One that no timer, no memory map and none of gRPC's 32-bit sizes can hold."""
    with_enough = {"canary": ["--versions=2"]}.get(name, [])
    for text in ("9" * 30, "9" * 4000, "-1", "-1e300" if kinds()[name] is float else "-300000"):
        if name in ("versions", "max_batch", "max_buffered") and not text.startswith("-"):
            assert getattr(options(f"--{name.replace('_', '-')}={text}"), name) > 0
            continue
        with pytest.raises(ServeError, match=f"^[^\n]*--{name.replace('_', '-')} [^\n]{{,200}}$"):
            options(f"--{name.replace('_', '-')}={text}", *with_enough)


def test_the_port_of_the_environment_is_named():
    with pytest.raises(ServeError, match=r"no --port 99999; .* \(--port is PORT in the environment\)"):
        options(PORT="99999")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    wrong = run("bundle", f"--config={tmp_path / 'pipe'}")
    said = f"error: can't read --config {tmp_path / 'pipe'}: it is not a regular file\n"
    assert (wrong.returncode, wrong.stderr) == (2, said)


@pytest.mark.parametrize("arguments", [[""], ["bundle", "--config", ""]])
def test_an_empty_path_is_refused(arguments):
    with pytest.raises((ServeError, SystemExit)):
        parse_arguments(arguments, "serve")


@pytest.mark.parametrize("name", [name for name, kind in kinds().items() if kind is str])
def test_nothing_is_not_taken_for_a_value(name):
    """Where a shell's variable is not set, a server without keys would start."""
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises((ServeError, SystemExit)):
        parse_arguments(["bundle", flag, ""], "serve")


def test_lists():
    assert split_list("a, b c,,\n") == ("a", "b", "c")
    assert split_list(" , ") == ()


def test_the_process_reads_its_environment():
    wrong = run("bundle", TRPO_TF_MAX_BOD="1")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == (
        "error: there is no option TRPO_TF_MAX_BOD in the environment; the nearest is TRPO_TF_MAX_BODY\n"
    )


@pytest.mark.parametrize("columns", [80, 120])
def test_help_shows_every_option_and_where_else_it_is_read_from(columns):
    done = run("--help", COLUMNS=str(columns))
    assert (done.returncode, done.stderr) == (0, "")
    for option in dataclasses.fields(ServeOptions):
        assert f"  --{option.name.replace('_', '-')}" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= columns
    said = " ".join(done.stdout.split())
    assert "--max-body as TRPO_TF_MAX_BODY=1000000, or as max-body = 1000000 in the file that --config" in said
    assert all(not line.endswith("-") for line in done.stdout.splitlines())


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"trpo-tf {serving.__version__}\n")


def test_a_documented_file_is_read(tmp_path):
    page = (ROOT / "docs" / "reference" / "serve" / "server.md").read_text()
    text = page.partition("```toml\n")[2].partition("```")[0]
    assert text
    (tmp_path / "serving.toml").write_text(text)
    assert options(f"--config={tmp_path / 'serving.toml'}") != ServeOptions()
