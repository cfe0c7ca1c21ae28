"""Looks at health and metrics once a second, as kubelet and Prometheus do."""

import http.client
import re
import time
from collections import defaultdict
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event

from tests.container.chaos.target import Target

EVERY_SECONDS = 1.0
PATIENCE_SECONDS = 15.0
"""Longer than a kubelet would wait, to see how long it takes."""

PROBES = ("/v2/health/live", "/v2/health/ready", "/metrics")

_SAMPLE = re.compile(r"(\w+)(\{.*\})? (\S+)")
_TYPE = re.compile(r"# TYPE (\w+) (\w+)")


@dataclass
class Probe:
    """One look: what for, when, how long it took, and what the answer was."""

    path: str
    when: float
    seconds: float
    outcome: str


@dataclass
class Probed:
    """All looks. `counters` has the last value of every counter, `falls` those that went down."""

    probes: list[Probe] = field(default_factory=list)
    counters: dict[str, float] = field(default_factory=dict)
    falls: list[str] = field(default_factory=list)
    scraped: float = 0.0

    def scrape(self, text: str, when: float) -> None:
        """Take what the metrics say."""
        kinds = dict(_TYPE.findall(text))
        for name, labels, value in _SAMPLE.findall("\n".join(line for line in text.split("\n") if line[:1] != "#")):
            family = re.sub("_(bucket|count|sum)$", "", name)
            if kinds.get(name) == "counter" or kinds.get(family) == "histogram":
                before = self.counters.get(name + labels, 0.0)
                if float(value) < before - 1e-6:
                    self.falls.append(f"{name}{labels} from {before:g} to {float(value):g}")
                self.counters[name + labels] = float(value)
        self.scraped = when

    def requests(self, *models: str) -> dict[str, float]:
        """Right answers of models that were counted, by protocol."""
        counted: dict[str, float] = defaultdict(float)
        for name, value in self.counters.items():
            labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
            is_right = labels.get("code") in ("200", "OK") and labels.get("model") in models
            if name.startswith("trpo_tf_requests_total") and is_right:
                counted[labels["protocol"]] += value
        return dict(counted)


def look(target: Target, path: str, seen: Probed) -> None:
    """Ask on a connection of its own."""
    began = time.monotonic()
    connection = target.connection(PATIENCE_SECONDS)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {target.key}"} if path == "/metrics" else {})
        response = connection.getresponse()
        content, outcome = response.read().decode(), str(response.status)
    except (OSError, http.client.HTTPException) as error:
        outcome = type(error).__name__
    finally:
        connection.close()
    seen.probes.append(Probe(path, began, time.monotonic() - began, outcome))
    if path == "/metrics" and outcome == "200":
        seen.scrape(content, began)


def run(target: Target, is_over: Event) -> Probed:
    """Look until it is over, and once more."""
    seen = Probed()
    while True:
        is_last, began = is_over.is_set(), time.monotonic()
        for path in PROBES:
            look(target, path, seen)
        if is_last:
            return seen
        is_over.wait(max(0.0, EVERY_SECONDS - (time.monotonic() - began)))
