"""What is in deploy/ is what Kubernetes, KServe and Compose take, by their published schemas."""

import json
import re
import shlex
from pathlib import Path

import compose_spec
import kubernetes_validate
import pytest
import yaml

from tests.support.paths import ROOT
from trpo_tf import serving
from trpo_tf.serving.command_line import make_options, parse_arguments
from trpo_tf.serving.errors import ServeError

DEPLOY = ROOT / "deploy"
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "serving.yaml").read_text()))
KSERVE = list(yaml.safe_load_all((DEPLOY / "kserve" / "serving.yaml").read_text()))
MODELS = json.loads(Path(__file__).with_name("kserve_models.json").read_text())
VERSION = "1.30"
"""Of Kubernetes."""

FIRST_CLASS = {"str": str, "int": int, "bool": bool, "dict(str, str)": dict}


def validate(document: dict, version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def by_kind(documents: list) -> dict:
    return {document["kind"]: document for document in documents}


DEPLOYMENT = by_kind(KUBERNETES)["Deployment"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
RUNTIME, SERVICE = by_kind(KSERVE)["ServingRuntime"], by_kind(KSERVE)["InferenceService"]


@pytest.mark.parametrize("version", [VERSION, "1.37"])
@pytest.mark.parametrize("document", KUBERNETES, ids=lambda document: document["kind"])
def test_kubernetes_takes_it(document, version):
    validate(document, version)


def test_a_field_that_kubernetes_does_not_know_is_refused():
    with pytest.raises(kubernetes_validate.ValidationError):
        validate({**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "replica": 2}}, VERSION)


def check_kserve(value, kind: str) -> None:
    """Every field is known, and has its type."""
    if kind in FIRST_CLASS:
        assert type(value) is FIRST_CLASS[kind], (value, kind)
    elif kind.startswith("list["):
        assert isinstance(value, list)
        for element in value:
            check_kserve(element, kind[5:-1])
    elif kind in MODELS:
        assert set(value) <= set(MODELS[kind]), f"{kind} does not know {set(value) - set(MODELS[kind])}"
        for name, element in value.items():
            check_kserve(element, MODELS[kind][name])
    else:
        assert kind in ("V1ObjectMeta", "V1Container"), f"no schema for {kind}"


def test_kserve_takes_it():
    check_kserve(RUNTIME, "V1alpha1ServingRuntime")
    check_kserve(SERVICE, "V1beta1InferenceService")
    with pytest.raises(AssertionError):
        check_kserve({**RUNTIME, "spec": {**RUNTIME["spec"], "containers": "one"}}, "V1alpha1ServingRuntime")
    with pytest.raises(AssertionError):
        check_kserve({**SERVICE, "spec": {"predicter": {}}}, "V1beta1InferenceService")


def test_the_container_of_the_kserve_runtime_is_one_that_kubernetes_takes():
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": RUNTIME["metadata"]}
    validate({**pod, "spec": {"containers": RUNTIME["spec"]["containers"]}}, VERSION)


def test_the_inference_service_names_the_runtime_and_its_format():
    model = SERVICE["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    assert model["modelFormat"]["name"] in [known["name"] for known in RUNTIME["spec"]["supportedModelFormats"]]
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]


@pytest.mark.parametrize("container", [*POD["containers"], *RUNTIME["spec"]["containers"]])
def test_containers_are_locked_down(container):
    security = {**POD["securityContext"], **container["securityContext"]}
    if container in RUNTIME["spec"]["containers"]:
        security = container["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert f"USER {security['runAsUser']}:" in (ROOT / "Dockerfile").read_text()
    assert set(container["resources"]) == {"requests", "limits"}
    assert container["image"] == f"trpo-tf-serving:{serving.__version__}"


def test_every_selector_finds_the_pods():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    kinds = by_kind(KUBERNETES)
    assert kinds["Service"]["spec"]["selector"] == labels
    assert kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == DEPLOYMENT["metadata"]["name"]


def test_probes_ask_routes_that_there_are(server):
    for container in [*POD["containers"], *RUNTIME["spec"]["containers"]]:
        for probe in (container[name] for name in container if name.endswith("Probe")):
            assert server.request("GET", probe["httpGet"]["path"])[0] == 200


def test_the_server_understands_the_arguments():
    (container,) = RUNTIME["spec"]["containers"]
    assert container["command"][:2] == ["trpo-tf", "serve"]
    bundle, options = parse_arguments([*container["command"][2:], *container["args"]], "trpo-tf serve")
    assert str(bundle) == "/mnt/models"
    assert options.tcp_port == container["ports"][0]["containerPort"]
    entry = re.search(r"^ENTRYPOINT (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert entry
    bundle, _ = parse_arguments(json.loads(entry[1])[2:], "trpo-tf serve")
    assert str(bundle) == POD["containers"][0]["volumeMounts"][0]["mountPath"]


def test_the_images_environment_lets_others_ask_and_can_be_switched_off():
    environment = dict(
        re.findall(r"\b(TRPO_TF_\w+|PORT)=(\S+)", (ROOT / "Dockerfile").read_text().partition("\nENV PATH")[2])
    )
    options = make_options({}, environment)
    assert (options.host, options.insecure, options.tcp_port) == ("0.0.0.0", True, 8080)
    with pytest.raises(ServeError, match="give --keys"):
        make_options({}, environment | {"TRPO_TF_INSECURE": "0"})
    assert make_options({}, environment | {"TRPO_TF_INSECURE": "0", "TRPO_TF_KEYS": "/run/secrets/keys"}).keys


def test_services_do_not_set_the_servers_options():
    """Their variables begin with the service's name, which may be trpo-tf."""
    assert POD["enableServiceLinks"] is False


def test_compose_takes_it():
    text = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", (DEPLOY / "compose.yaml").read_text())  # as Compose does first
    compose_spec.PyCompose.from_yaml(text).validate()
    with pytest.raises(ValueError, match="portz"):
        compose_spec.PyCompose.from_yaml(text.replace("ports:", "portz:"))


def test_compose_mounts_files_that_there_are():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    mounted = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    ours = [path for path in mounted if path.startswith("./")]
    assert len(ours) == 3
    assert all((DEPLOY / path).is_dir() for path in ours)
    (command,) = services["prometheus"]["command"]
    assert (DEPLOY / "prometheus" / Path(shlex.split(command)[0].partition("=")[2]).name).is_file()
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (DEPLOY / "grafana" / home.removeprefix("/")).is_file()
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == ["serving:8080"]


def test_every_published_port_is_this_machines_own():
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service["ports"])
