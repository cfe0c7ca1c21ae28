"""The alert rules hold, and they and the dashboard ask for metrics that the server has."""

import json
import re
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus" / "alerts.yaml"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "trpo-tf.json").read_text())
RULES = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
NAME = re.compile(r"\b(?:trpo_tf|process)_\w+")


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_configuration_and_the_rules():
    promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yaml"))
    promtool("check", "rules", str(ALERTS))


def test_each_alert_fires_when_it_should_and_not_before():
    cases = Path(__file__).with_name("alerts_test.yaml")
    promtool("test", "rules", str(cases))
    tried = [case for test in yaml.safe_load(cases.read_text())["tests"] for case in test["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in tried if bool(case["exp_alerts"]) is fires} == {r["alert"] for r in RULES}


def test_prometheus_takes_every_query_of_the_dashboard(tmp_path):
    """As recording rules, since promtool checks nothing else."""
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(QUERIES)
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(path))


def test_panels_do_not_overlap_and_ask_the_source_that_is_provisioned():
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    provisioned = yaml.safe_load((DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    (source,) = provisioned["datasources"]
    assert {target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel["targets"]} == {
        source["uid"]
    }


@pytest.fixture(scope="module")
def scrape(server) -> str:
    """What /metrics says after a request that was answered and one that was not."""
    tensor = {"name": "obs", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]}
    assert server.request("POST", "/v2/models/discrete/infer", {"inputs": [tensor]})[0] == 200
    assert server.request("POST", "/v2/models/discrete/infer", {"inputs": []})[0] == 400
    with closing(server.connect()) as connection:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.status == 200, "there is no /metrics"
        return response.read().decode()


@pytest.mark.parametrize("query", [*(rule["expr"] for rule in RULES), *QUERIES])
def test_every_metric_that_is_asked_for_is_one_that_the_server_has(scrape, query):
    families = set(re.findall(r"^# TYPE (\S+)", scrape, re.MULTILINE))
    names = {re.sub(r"_bucket$", "", name) for name in NAME.findall(query)}
    assert names <= families
    assert names or query.startswith("up{")


@pytest.mark.parametrize("query", [*(rule["expr"] for rule in RULES), *QUERIES])
def test_every_label_that_is_asked_for_is_one_that_the_metric_has(scrape, query):
    for name, matchers in re.findall(r"\b(trpo_tf_\w+)\{([^}]*)\}", query):
        samples = re.findall(rf"^{name}\{{(.*)\}} ", scrape, re.MULTILINE)
        for label in re.findall(r"(\w+)=~?\"", matchers):
            assert all(f'{label}="' in sample for sample in samples), (name, label)
