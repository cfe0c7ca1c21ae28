"""A benchmark's results as CSV, JSON and a table for the terminal."""

import csv
import io
import json
from collections.abc import Sequence

from trpo_tf.benchmark.results import Result
from trpo_tf.benchmark.statistics import Estimate
from trpo_tf.benchmark.summary import Summary

_EVALUATION = ("mean_return", "std_return", "min_return", "max_return", "mean_length", "episodes")


def results_csv(results: Sequence[Result]) -> str:
    """A row a run."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["environment", "seed", "steps", *_EVALUATION, "seconds", "steps_per_second"])
    for result in results:
        evaluation = [result.evaluation[name] for name in _EVALUATION]
        writer.writerow(
            [result.environment, result.seed, result.steps, *evaluation, result.seconds, result.steps_per_second]
        )
    return file.getvalue()


def results_json(results: Sequence[Result], summaries: Sequence[Summary], peer: str | None) -> str:
    """Everything: each run in full, and each environment's summary."""
    everything = {
        "peer": peer,
        "environments": [summary.to_dict() for summary in summaries],
        "runs": [result.to_dict() for result in results],
    }
    return json.dumps(everything, indent=1) + "\n"


def terminal_table(summaries: Sequence[Summary], peer: str | None) -> str:
    """A line an environment."""
    width = max(len("environment"), *(len(summary.environment) for summary in summaries))
    lines = [f"{'environment':<{width}}  seeds  {'mean':>9}  {'IQM and 95% interval':<30}"]
    if peer:
        lines[0] += f"  {peer + ', IQM':<30}  improvement"
    for summary in summaries:
        line = (
            f"{summary.environment:<{width}}  {len(summary.scores):>5}  {summary.mean:>9,.1f}  {shown(summary.iqm):<30}"
        )
        if summary.peer:
            line += f"  {shown(summary.peer.iqm):<30}  {shown(summary.peer.improvement, digits=2)}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def shown(estimate: Estimate, digits: int = 1) -> str:
    """A value and its interval."""
    value, low, high = (f"{number:,.{digits}f}" for number in estimate)
    return f"{value} [{low}, {high}]"
