"""deploy/kuberay is what KubeRay's operator and Kubernetes take, and what the command line and the image are."""

import copy
import json
import re
import shlex
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.support.paths import ROOT
from trpo_tf import serving
from trpo_tf.cli.main import parse
from trpo_tf.cli.training import Train
from trpo_tf.sampling.workers import Workers

JOB = yaml.safe_load((ROOT / "deploy" / "kuberay" / "training.yaml").read_text())
SCHEMA = json.loads(Path(__file__).with_name("rayjob_schema.json").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
HEAD, (GROUP,) = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
STAGE = (ROOT / "Dockerfile").read_text().partition(" AS train\n")[2].partition("\nFROM ")[0]


def test_the_operator_takes_it():
    jsonschema.validate(JOB, SCHEMA)
    unknown, wrong = copy.deepcopy(JOB), copy.deepcopy(JOB)
    unknown["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 2
    wrong["spec"]["backoffLimit"] = "none"
    for refused in (unknown, wrong):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(refused, SCHEMA)


@pytest.mark.parametrize("group", [HEAD, GROUP], ids=["head", "workers"])
def test_kubernetes_takes_its_pods_which_are_locked_down(group):
    pod = group["template"]["spec"]
    whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}
    kubernetes_validate.validate(whole, "1.30", strict=True)
    (container,) = pod["containers"]
    assert container["image"] == f"trpo-tf-train:{serving.__version__}"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"\nUSER {pod['securityContext']['runAsUser']}:" in STAGE
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_the_command_line_understands_the_entrypoint_and_the_cluster_has_a_core_for_each_worker():
    command = parse(shlex.split(JOB["spec"]["entrypoint"])[1:])
    assert isinstance(command, Train)
    assert command.workers == Workers.of(Workers(command.workers, command.step_timeout), command.config).count
    assert command.ray == "auto"
    (container,) = GROUP["template"]["spec"]["containers"]
    assert GROUP["replicas"] * int(container["resources"]["requests"]["cpu"]) >= command.workers
    assert HEAD["rayStartParams"]["num-cpus"] == "0"
    (mount,) = HEAD["template"]["spec"]["containers"][0]["volumeMounts"]
    assert command.out.is_relative_to(mount["mountPath"])


def test_the_image_has_the_ray_of_the_manifest_and_what_it_copies_is_sent_to_the_builder():
    packages = re.search(r"COPY (requirements/\S+) ", STAGE)[1]
    assert f"\nray=={CLUSTER['rayVersion']} " in (ROOT / packages).read_text()
    sent = (ROOT / ".dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--from)(\S+) ", STAGE, re.MULTILINE)
    assert {"trpo_tf", "export", "serving", packages} == set(copied)
    assert all(f"!{path}" in sent for path in copied)


def test_the_serving_image_is_what_is_built_by_default():
    assert (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2].count('"trpo-tf", "serve"') == 1
