"""A benchmark's results as CSV, JSON and a table for the terminal."""

import csv
import io
import json
from collections.abc import Sequence

from trpo_tf.benchmark.results import Result
from trpo_tf.benchmark.scores.statistics import Estimate
from trpo_tf.benchmark.scores.summary import Summary, overall_improvement, shortfalls
from trpo_tf.export.support.text_table import text_table

_EVALUATION = ("mean_return", "std_return", "min_return", "max_return", "mean_length", "episodes")


def results_csv(results: Sequence[Result]) -> str:
    """Return the results as CSV, with a row for each run."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["environment", "seed", "steps", *_EVALUATION, "seconds", "steps_per_second", "untrained_return"])
    for result in results:
        evaluation = [result.evaluation[name] for name in _EVALUATION]
        speed = result.seconds, result.steps_per_second
        writer.writerow([result.environment, result.seed, result.steps, *evaluation, *speed, result.untrained_return])
    return file.getvalue()


def results_json(results: Sequence[Result], summaries: Sequence[Summary], peer: str | None) -> str:
    """Return everything as JSON: runs, summaries of environments, and the overall probability of improvement."""
    everything = {
        "peer": peer,
        "improvement": overall_improvement(summaries),
        "shortfalls": shortfalls(summaries, peer),
        "environments": [summary.to_dict() for summary in summaries],
        "runs": [result.to_dict() for result in results],
    }
    return json.dumps(everything, indent=1) + "\n"


def terminal_table(summaries: Sequence[Summary], peer: str | None) -> str:
    """Return a table of environments, the overall probability of improvement, and a line for each shortfall."""
    heads = ["environment", "seeds", "untrained", "IQM", "spread"]
    rows = [_row(summary, peer) for summary in summaries]
    if peer:
        heads += [f"{peer}, IQM", "spread", "improvement"]
    lines = [text_table(heads, rows)]
    overall = overall_improvement(summaries)
    if overall is not None:
        lines += ["", f"probability of improvement over {peer}, mean of environments: {_shown(overall)}"]
    problems = shortfalls(summaries, peer)
    return "\n".join([*lines, "", *problems] if problems else lines)


def _row(summary: Summary, peer: str | None) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,.{summary.digits}f}"

    cells = [summary.name, str(len(summary.scores))]
    cells += map(number, (summary.untrained, summary.iqm.value, summary.spread))
    if not peer:
        return cells
    theirs = summary.peer
    if theirs is None:
        return [*cells, "-", "-", "-"]
    return [*cells, number(theirs.iqm.value), number(theirs.spread), _shown(theirs.improvement)]


def _shown(estimate: Estimate) -> str:
    """Format a value and its interval."""
    value, low, high = (f"{number:.2f}" for number in estimate)
    return f"{value} [{low}, {high}]"
