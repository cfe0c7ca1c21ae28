"""Build the serving image and run it locked down; exit status 0 if it is what docs/howto/serve/deploy.md says.

`python tests/container/check_image.py [--extra grpc] [--build-only]` uses Docker where its engine answers. Elsewhere it
uses the program that CONTAINER_TOOL names, or ../shared/tools/container: `build TAG FOLDER ARGUMENTS`, `run ARGUMENTS`
on the host's network, and `podman ARGUMENTS` for the rest. Needs what trains and exports, for policies to serve.
"""

import argparse
import http.client
import json
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
from engine import (
    LOCKED_DOWN,
    ROOT,
    CheckError,
    Engine,
    execute,
    expect,
    find_engine,
    free_port,
    process_status,
    running,
    wait_until_ready,
)

from trpo_tf import serving

BUNDLES = ROOT / "tests" / "serving" / "bundles"
MOST_MEGABYTES = {"serve": 130, "grpc": 140}
MOST_RESIDENT_MIB = {"serve": 90, "grpc": 100}
STOP_SECONDS = 15.0
CONNECTIONS = 64
Act = Callable[[np.ndarray], int]

VERIFY_ALL = """
import pathlib, trpo_tf.serving.verify
print(sum(trpo_tf.serving.verify.verify(bundle).golden_cases for bundle in pathlib.Path("/models").iterdir()))
"""


def build(engine: Engine, extra: str, say: Callable[[str], None]) -> str:
    """Build the image and hold it to its size; its tag. Raises `CheckError`."""
    tag = f"trpo-tf-{'serving' if extra == 'serve' else f'serving-{extra}'}"
    execute(*engine.build, tag, str(ROOT), "--build-arg", f"EXTRA={extra}")
    image = engine.inspect_image(tag)
    labels = image["Config"]["Labels"]
    expect("Healthcheck" in str(image), "the image has no HEALTHCHECK")
    expect(image["Config"]["User"] == "10001:10001", "the image has no user of its own")
    version = labels["org.opencontainers.image.version"]
    expect(version == serving.__version__, f"the image says that it is version {version}")
    size = int(image["Size"]) / 1e6
    base = int(engine.inspect_image(labels["org.opencontainers.image.base.name"])["Size"]) / 1e6
    say(f"image, base, ours     {size:.1f} = {base:.1f} + {size - base:.1f} MB")
    expect(size - base <= MOST_MEGABYTES[extra], f"our layers are larger than {MOST_MEGABYTES[extra]} MB")
    return tag


def run_once(
    engine: Engine, tag: str, models: Path, *arguments: str, check: bool = True
) -> subprocess.CompletedProcess:
    """Run the image to its end, locked down, with `models` mounted."""
    return execute(
        *engine.run, "--rm", *LOCKED_DOWN, f"--volume={models}:/models:ro", *arguments, check=check, timeout=60
    )


def check_sbom(engine: Engine, tag: str) -> int:
    """The list of parts names every package that is there, and no other. The number of parts. Raises `CheckError`."""
    parts = json.loads(
        run_once(engine, tag, BUNDLES / "discrete", "--entrypoint=cat", tag, "/opt/sbom.cdx.json").stdout
    )
    code = "import importlib.metadata as m; print(*{f'{d.name}=={d.version}' for d in m.distributions()})"
    present = run_once(engine, tag, BUNDLES / "discrete", "--entrypoint=python", tag, "-c", code).stdout.split()
    listed = {f"{part['name']}=={part['version']}" for part in parts["components"] if part["type"] == "library"}
    expect(parts["bomFormat"] == "CycloneDX", "the SBOM is not CycloneDX")
    expect(listed == set(present), f"the SBOM lists {sorted(listed)}, but there is {sorted(present)}")
    expect("://" not in json.dumps(parts).replace(parts["$schema"], ""), "the SBOM names a host")
    return len(listed)


def check_inside(engine: Engine, name: str) -> dict[str, str]:
    """Look around in a container that serves; the facts about its first process. Raises `CheckError`."""
    look = Path(__file__).with_name("inside.py").read_text()
    found = json.loads(engine("exec", name, "python", "-c", look).stdout)
    libraries = found.pop("libraries")
    expect(not any(found.values()), f"there is what should not be there: {found}")
    expect(len(libraries) > 0, "no library of ONNX Runtime is loaded")
    healthy = engine("exec", name, "python", "/app/trpo_tf/serving/healthcheck.py", check=False)
    expect(healthy.returncode == 0, f"the health check fails: {healthy.stderr}")
    status = process_status(engine, name)
    expect("0" not in status["Uid"].split(), "the server runs as root")
    expect(int(status["CapEff"], 16) == 0, f"it has capabilities: {status['CapEff']}")
    expect(status["NoNewPrivs"] == "1", "it may gain privileges")
    return status


def play(act: Act, environment: str, seeds: Sequence[int]) -> float:
    """The mean undiscounted return of an episode for each seed."""
    total = 0.0
    with gym.make(environment) as env:
        for seed in seeds:
            observation, _ = env.reset(seed=seed)
            over = False
            while not over:
                observation, reward, terminated, truncated, _ = env.step(act(observation))
                total, over = total + float(reward), terminated or truncated
    return total / len(seeds)


def over_http(port: int, model: str) -> Act:
    """Acts through the server, on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def act(observation: np.ndarray) -> int:
        tensor = {"name": "obs", "datatype": "FP32", "shape": [1, *observation.shape], "data": observation.tolist()}
        connection.request("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}))
        with connection.getresponse() as response:
            return int(json.load(response)["outputs"][0]["data"][0])

    return act


def over_grpc(port: int, model: str) -> Act:
    """Acts through the server's gRPC port, with Triton's client."""
    import tritonclient.grpc as triton

    client = triton.InferenceServerClient(f"127.0.0.1:{port}")

    def act(observation: np.ndarray) -> int:
        tensor = triton.InferInput("obs", [1, *observation.shape], "FP32")
        tensor.set_data_from_numpy(observation[None])
        return int(client.infer(model, [tensor]).as_numpy("action")[0])

    return act


def stop_under_load(engine: Engine, name: str, port: int, model: str) -> int:
    """SIGTERM while many clients ask; how many answers they had. Raises `CheckError` if a request failed."""
    program = [sys.executable, str(Path(__file__).with_name("traffic.py")), str(port), model]
    with subprocess.Popen([*program, f"--connections={CONNECTIONS}"], stdout=subprocess.PIPE, text=True) as clients:
        expect(bool(clients.stdout and clients.stdout.readline()), "the clients were refused")
        engine("kill", "--signal=TERM", name)
        status = engine("wait", name, timeout=STOP_SECONDS).stdout.strip()
        seen = json.loads(clients.communicate(timeout=STOP_SECONDS)[0])
    expect(status == "0", f"after SIGTERM it ended with status {status}")
    expect(seen["failed"] == 0 and seen["answered"] > CONNECTIONS, f"requests failed: {seen}")
    return int(seen["answered"])


def check_health_over_tls(engine: Engine, tag: str, folder: Path) -> None:
    """A container with TLS and a port of its own, both by its environment, is healthy. Raises `CheckError`."""
    folder.mkdir()
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost")
    execute(*command, "-keyout", str(folder / "key"), "-out", str(folder / "cert"))
    (folder / "key").chmod(0o644)  # for the image's user
    port = free_port()
    environment = {"PORT": str(port), "TLS_CERT": "/run/secrets/cert", "TLS_KEY": "/run/secrets/key"}
    on = [f"--env=TRPO_TF_{name}={value}" for name, value in environment.items()]
    mount = f"--volume={folder}:/run/secrets:ro"
    with running(engine, tag, BUNDLES / "discrete", free_port(), on=(*on, mount)) as name:
        deadline = time.monotonic() + STOP_SECONDS
        while (done := engine("exec", name, "python", "/app/trpo_tf/serving/healthcheck.py", check=False)).returncode:
            expect(time.monotonic() < deadline, f"with TLS the container is unhealthy: {done.stderr}")
            time.sleep(0.2)
        context = ssl.create_default_context(cafile=str(folder / "cert"))
        with urllib.request.urlopen(f"https://localhost:{port}/v2/health/ready", timeout=5, context=context) as answer:
            expect(answer.status == 200, "over TLS it is not ready")


def check_refusal(engine: Engine, tag: str, folder: Path) -> str:
    """A bundle that was tampered with ends the container with status 2 and one line. Raises `CheckError`."""
    shutil.copytree(BUNDLES / "discrete", folder)
    model = folder / "policy.onnx"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    done = run_once(engine, tag, folder, tag, check=False)
    said = [line for line in done.stderr.splitlines() if not line.startswith("time=")]  # podman's own
    expect(done.returncode == 2, f"a bundle that was tampered with ended it with status {done.returncode}")
    expect(len(said) == 1 and said[0].startswith("error: "), f"it said {said}")
    return said[0]


def check_image(engine: Engine, extra: str, folder: Path, say: Callable[[str], None] = print) -> None:
    """Build, run, question and stop the image. Raises `CheckError`."""
    tag = build(engine, extra, say)
    say(f"parts in the SBOM     {check_sbom(engine, tag)}")

    import policies

    policies.of_every_type(folder / "types")
    done = run_once(engine, tag, folder / "types", "--entrypoint=python", tag, "-c", VERIFY_ALL)
    say(f"golden cases          {int(done.stdout)}, of every type, right")
    bundle = folder / "trained"
    expected = policies.trained(bundle)
    policy = serving.load(bundle)
    model = policy.manifest.name
    port, grpc_port = free_port(), free_port()
    options = ("--grpc-port", str(grpc_port)) if extra == "grpc" else ()
    started = time.monotonic()
    with running(engine, tag, bundle, port, *options) as name:
        wait_until_ready(engine, name, f"http://127.0.0.1:{port}")
        say(f"first answer after    {time.monotonic() - started:.2f} s")
        status = check_inside(engine, name)
        resident = int(status["VmRSS"].split()[0]) / 1024
        say(f"user, memory          uid {status['Uid'].split()[0]}, {resident:.1f} MiB resident")
        expect(resident <= MOST_RESIDENT_MIB[extra], f"it takes more than {MOST_RESIDENT_MIB[extra]} MiB")
        ways: dict[str, Act] = {"in process": policy.act, "HTTP": over_http(port, model)}
        if extra == "grpc":
            ways["gRPC"] = over_grpc(grpc_port, model)
        returns = {way: play(act, policies.ENVIRONMENT, policies.SEEDS) for way, act in ways.items()}
        say(f"return of training    {expected:.2f}; {returns}")
        expect(set(returns.values()) == {expected}, "the returns differ")
        answered = stop_under_load(engine, name, port, model)
        say(f"SIGTERM under load    {answered} answers on {CONNECTIONS} connections, none failed, exit status 0")
    check_health_over_tls(engine, tag, folder / "tls")
    say("health check          with TLS and a port by the environment: healthy")
    say(f"tampered bundle       status 2, {check_refusal(engine, tag, folder / 'tampered')}")


def main() -> None:
    """Check, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extra", default="serve", choices=tuple(MOST_MEGABYTES), help="what the image is built with")
    parser.add_argument("--build-only", action="store_true")
    arguments = parser.parse_args()
    try:
        if arguments.build_only:
            build(find_engine(), arguments.extra, print)
            return
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)  # for the image's user
            check_image(find_engine(), arguments.extra, Path(folder))
    except CheckError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
