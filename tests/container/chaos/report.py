"""What was found: judged, as JSON, and as a table."""

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.container.chaos.clients.tally import Loss, Tally, percentiles
from tests.container.chaos.clients.unusual import CONVERSATIONS
from tests.container.chaos.faults.processes import REPLACED_SECONDS, Blow
from tests.container.chaos.probes import Probe, Probed
from tests.container.chaos.target import MODEL, RECURRENT

MOST_GROWTH = 0.10
"""Of memory, as a share: from its median in the second quarter of the time to that in the last."""

GROWTH_SECONDS = 60.0
"""In less than this memory still finds its level."""

SNAPSHOT_SECONDS = 1.0
"""Counts that a worker may take along when it is killed."""

RECONNECT_SECONDS = 5
"""Until a client that had all its connections to one worker has others."""

KUBELET_SECONDS, KUBELET_FAILURES = 1.0, 3
"""How long a kubelet waits, and how many probes in a row must fail for it to act."""

BUSY_SCRAPE = ("/metrics", "503")
"""What may be told to come again when all places are taken; health never is."""

SHOWN = 10

_NEW_CONNECTIONS = {"fresh", *CONVERSATIONS}


@dataclass(frozen=True)
class Course:
    """What happened to the server, seen from outside. Times are the monotonic clock's, memory is in bytes.

    Attributes:
        stopped_at: when SIGTERM came; `status` is what it ended with.
        peak: largest memory of the container, None without one; `oom_kills` the processes that it was too much for.
    """

    began: float
    stopped_at: float
    memory: Sequence[int]
    blows: Sequence[Blow]
    status: int | None
    died_early: bool
    peak: int | None
    oom_kills: int | None

    @property
    def seconds(self) -> float:
        """How long it was under load."""
        return self.stopped_at - self.began


def unexcused(losses: Iterable[Loss], course: Course) -> list[Loss]:
    """Requests that were lost but on connections of a worker that was killed or had been stopped.

    Who connects anew when the server ends may be lost, where the kernel can't be told to turn it away.
    """

    def is_excused(loss: Loss) -> bool:
        kind = loss.reason.partition(": ")[0]
        if kind in _NEW_CONNECTIONS and loss.when > course.stopped_at:
            return True
        return any(
            loss.connection in blow.connections and 0 <= loss.when - blow.when < 4 * REPLACED_SECONDS
            for blow in course.blows
        )

    return [loss for loss in losses if not is_excused(loss)]


def summary(tallies: dict[str, Tally], probed: Probed, course: Course) -> dict[str, Any]:
    """Everything that is shown and judged."""
    losses = [loss for tally in tallies.values() for loss in tally.lost]
    wrong = [message for tally in tallies.values() for message in tally.wrong]
    return {
        "seconds": round(course.seconds, 1),
        "clients": _by_kind(tallies),
        "right": _count(tallies, "right"),
        "wrong": _count(tallies, "wrong"),
        "wrong_messages": wrong,
        "lost": len(losses),
        "lost_elsewhere": _shown(unexcused(losses, course), course),
        "refused": _shown(
            [r for tally in tallies.values() for r in tally.refused if r.when < course.stopped_at], course
        ),
        "longest_silence_seconds": {
            protocol: _longest_silence(tallies, protocol, course) for protocol in ("http", "grpc")
        },
        "blows": dict(Counter(blow.kind for blow in course.blows)),
        "replaced_seconds": [
            blow.seconds and round(blow.seconds, 2) for blow in course.blows if blow.kind == "stopped"
        ],
        "probes": _probes(probed.probes, course),
        "metrics": _metrics(tallies, probed, course),
        "memory": _memory(course),
        "status": course.status,
        "died_early": course.died_early,
    }


def _shown(losses: Sequence[Loss], course: Course) -> list[str]:
    """What, and in which second of the run;"""
    return [f"{loss.reason} ({loss.when - course.began:.1f} s)" for loss in losses]


def _count(tallies: dict[str, Tally], outcome: str) -> int:
    return sum(count for tally in tallies.values() for (_, met), count in tally.outcomes.items() if met == outcome)


def _by_kind(tallies: dict[str, Tally]) -> dict[str, dict[str, Any]]:
    kinds: dict[str, dict[str, Any]] = defaultdict(dict)
    for tally in tallies.values():
        for (kind, outcome), count in sorted(tally.outcomes.items()):
            kinds[kind][outcome] = count
        for kind, microseconds in tally.microseconds.items():
            kinds[kind]["p50_us"], kinds[kind]["p99_us"] = percentiles(microseconds, 0.5, 0.99)
    return dict(kinds)


def _longest_silence(tallies: dict[str, Tally], protocol: str, course: Course) -> int:
    """Seconds in a row without one right answer."""
    seconds = sorted(second for tally in tallies.values() for seen, second in tally.by_second if seen == protocol)
    gaps = [b - a - 1 for a, b in itertools.pairwise(seconds)]
    return max(gaps, default=int(course.seconds))


def _probes(probes: Sequence[Probe], course: Course) -> dict[str, dict[str, Any]]:
    """By route, of those that no worker may have got that was just killed, or stopped and not replaced yet."""
    hung = [(b.when, b.when + (b.seconds or 0) * (b.kind == "stopped")) for b in course.blows]
    found = {}
    for path in dict.fromkeys(probe.path for probe in probes):
        asked = [probe for probe in probes if probe.path == path]
        clear = [p for p in asked if not any(p.when + p.seconds > begin and p.when < end for begin, end in hung)]
        taken = sorted(probe.seconds for probe in clear if probe.outcome == "200") or [0.0]
        found[path] = {
            "count": len(asked),
            "undisturbed": len(clear),
            "p50_ms": round(statistics.median(taken) * 1e3, 1),
            "p99_ms": round(taken[int(0.99 * len(taken))] * 1e3, 1),
            "longest_ms": round(taken[-1] * 1e3, 1),
            "slower_than_a_second": sum(seconds > KUBELET_SECONDS for seconds in taken),
            "slow_in_a_row": _longest_run([probe.seconds > KUBELET_SECONDS for probe in clear]),
            "not_200": dict(Counter(probe.outcome for probe in clear if probe.outcome != "200")),
        }
    return found


def _longest_run(truths: Sequence[bool]) -> int:
    return max((sum(1 for _ in run) for is_true, run in itertools.groupby(truths) if is_true), default=0)


def _metrics(tallies: dict[str, Tally], probed: Probed, course: Course) -> dict[str, Any]:
    """Right answers that were counted, beside those that had arrived before the last scrape."""
    counted, result = probed.requests(MODEL, RECURRENT), {}
    for protocol in ("http", "grpc"):
        by_second: Counter[int] = Counter()
        for tally in tallies.values():
            by_second.update({second: n for (seen, second), n in tally.by_second.items() if seen == protocol})
        arrived = sum(count for second, count in by_second.items() if second < int(probed.scraped))
        fastest = max(by_second.values(), default=0)
        result[protocol] = {
            "counted": int(counted.get(protocol, 0)),
            "arrived": arrived,
            "taken_along_at_most": int(len(course.blows) * SNAPSHOT_SECONDS * fastest),
        }
    return {**result, "falls": probed.falls[:SHOWN], "scraped": probed.scraped > 0}


def _memory(course: Course) -> dict[str, Any]:
    quarter = max(len(course.memory) // 4, 1)
    early, late = course.memory[quarter : 2 * quarter] or course.memory, course.memory[-quarter:]
    before, after = statistics.median(early), statistics.median(late)
    tenths = [course.memory[i * (len(course.memory) - 1) // 9] for i in range(10)]
    return {
        "mib": [round(value / 2**20, 1) for value in tenths],
        "growth": round(after / max(before, 1) - 1, 4),
        "peak_mib": None if course.peak is None else round(course.peak / 2**20, 1),
        "oom_kills": course.oom_kills,
    }


def complaints(found: dict[str, Any]) -> list[str]:
    """What is wrong, if anything."""
    checks = {
        "the server ended before it was told to": found["died_early"],
        f"the kernel killed {found['memory']['oom_kills']} processes for want of memory": found["memory"]["oom_kills"],
        f"{found['wrong']} answers were wrong: {found['wrong_messages'][:1]}": found["wrong"],
        f"{len(found['lost_elsewhere'])} requests were lost, on connections that no killed worker had: "
        f"{found['lost_elsewhere'][:SHOWN]}": found["lost_elsewhere"],
        f"{len(found['refused'])} connections were refused: {found['refused'][:1]}": found["refused"],
        f"a worker that was stopped was not replaced within {REPLACED_SECONDS:.0f} s: {found['replaced_seconds']}": any(
            seconds is None or seconds > REPLACED_SECONDS + 1 for seconds in found["replaced_seconds"]
        ),
        f"memory grew by {found['memory']['growth']:.1%}": found["seconds"] > GROWTH_SECONDS
        and found["memory"]["growth"] > MOST_GROWTH,
        f"after SIGTERM it ended with status {found['status']}": found["status"] != 0,
        f"counters went down: {found['metrics']['falls'][:1]}": found["metrics"]["falls"],
        "metrics were never answered": not found["metrics"]["scraped"],
    }
    said = [text for text, is_wrong in checks.items() if is_wrong]
    for protocol, silence in found["longest_silence_seconds"].items():
        if silence > REPLACED_SECONDS + RECONNECT_SECONDS:
            said.append(f"nobody was answered by {protocol} for {silence} s")
    for protocol in ("http", "grpc"):
        counts = found["metrics"][protocol]
        if counts["counted"] < counts["arrived"] - counts["taken_along_at_most"]:
            said.append(f"of {counts['arrived']} answers by {protocol} only {counts['counted']} were counted")
    for path, probes in found["probes"].items():
        refused = {outcome: count for outcome, count in probes["not_200"].items() if (path, outcome) != BUSY_SCRAPE}
        if refused:
            said.append(f"{path} was answered with {refused}")
        if path != BUSY_SCRAPE[0] and probes["slow_in_a_row"] >= KUBELET_FAILURES:
            said.append(f"{path} took more than a second {probes['slow_in_a_row']} times in a row")
    return [*said, *found["rotation_faults"]]


def table(found: dict[str, Any]) -> str:
    """For people, as Markdown."""
    clients = found["clients"]
    good = {kind: row for kind, row in clients.items() if row.get("right") and "p50_us" in row}
    unusual = sum(clients.get(kind, {}).get("right", 0) for kind in CONVERSATIONS)
    rude = sum(
        count
        for kind, row in clients.items()
        if kind not in good and kind not in CONVERSATIONS
        for outcome, count in row.items()
        if not outcome.endswith("_us")
    )
    memory, metrics = found["memory"], found["metrics"]
    rows = {
        "right answers": f"{found['right']:,} in {found['seconds']:.0f} s",
        "of them to unusual clients": f"{unusual:,}",
        "rude clients, amplifying messages": f"{rude:,}",
        "wrong answers": str(found["wrong"]),
        "lost on connections of killed workers": str(found["lost"] - len(found["lost_elsewhere"])),
        "lost elsewhere": str(len(found["lost_elsewhere"])),
        **{
            f"p50, p99 of {kind}": f"{row['p50_us'] / 1e3:.1f}, {row['p99_us'] / 1e3:.1f} ms"
            for kind, row in good.items()
        },
        "busy": str({kind: row["busy"] for kind, row in clients.items() if row.get("busy")}),
        "longest without an answer": str(found["longest_silence_seconds"]),
        "workers": f"{found['blows']}; stopped ones replaced after {found['replaced_seconds']} s",
        "published": str(found["published"]),
        "rotations": str(found["rotations"]),
        **{
            f"{path} p50, p99, longest": f"{row['p50_ms']}, {row['p99_ms']}, {row['longest_ms']} ms "
            f"({row['slower_than_a_second']} of {row['undisturbed']} above 1 s)"
            for path, row in found["probes"].items()
        },
        "counted, arrived": ", ".join(
            f"{metrics[protocol]['counted']:,} {metrics[protocol]['arrived']:,} by {protocol}"
            for protocol in ("http", "grpc")
        ),
        "memory, each tenth of the time": f"{' '.join(map(str, memory['mib']))} MiB",
        "growth, second quarter to last": f"{memory['growth']:+.1%}",
        "largest memory of the container": f"{memory['peak_mib']} MiB, {memory['oom_kills']} processes killed for it",
        "the server's share of its core": f"{found['cpu_share']:.0%}",
        "log": f"{found['log_megabytes']} MB read",
        "exit status": str(found["status"]),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
