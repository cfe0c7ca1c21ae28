"""The benchmark's report, as one self-contained HTML file."""

import base64
import itertools
import json
from collections.abc import Sequence
from html import escape

from trpo_tf.benchmark.results import Result
from trpo_tf.benchmark.scores.statistics import Estimate
from trpo_tf.benchmark.scores.summary import Summary, overall_improvement, shortfalls
from trpo_tf.reporting.html import definitions, page


def html_report(
    summaries: Sequence[Summary], results: Sequence[Result], notes: Sequence[str], peer: str | None, figure: bytes
) -> str:
    """Render the report as one page.

    Args:
        summaries: rows of the table of scores.
        results: runs whose settings are listed.
        notes: what is missing, and why.
        peer: name of the trainer to compare with, if any.
        figure: the learning curves, as SVG.
    """
    image = base64.b64encode(figure).decode()
    parts = [
        f"<h1>Benchmark of trpo-tf</h1>{_lead(summaries, results, peer)}",
        _notes(notes),
        f'<h2>Learning curves</h2><img alt="Learning curves" src="data:image/svg+xml;base64,{image}">',
        f"<h2>Final scores</h2>{_table(summaries, peer)}{_notes(shortfalls(summaries, peer))}{_legend(peer)}",
        f"<h2>Machine and versions</h2>{_machines(results)}",
        f"<h2>Runs and their settings</h2>{''.join(map(_run, results))}",
    ]
    return page("Benchmark of trpo-tf", parts)


def _lead(summaries: Sequence[Summary], results: Sequence[Result], peer: str | None) -> str:
    seeds = [result.seed for result in results]
    text = f"{len(results)} runs, {len(summaries)} environments, seeds {min(seeds)} to {max(seeds)}."
    improvement = overall_improvement(summaries)
    if improvement is not None:
        value, low, high = (f"{number:.2f}" for number in improvement)
        text += (
            f" A run of trpo-tf scores above one of {peer} with probability {value} (95% interval {low} to {high}), "
            "mean of environments."
        )
    return f'<p class="lead">{escape(text)}</p>'


def _notes(notes: Sequence[str]) -> str:
    return f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>' if notes else ""


def _table(summaries: Sequence[Summary], peer: str | None) -> str:
    groups = '<tr><th colspan="2"></th><th colspan="5" class="ours">trpo-tf</th>'
    heads = ["environment", "steps", "seeds", "steps/s", "untrained", "IQM", "spread"]
    if peer:
        groups += f'<th colspan="3" class="peer">{escape(peer)}</th><th colspan="1"></th>'
        heads += ["seeds", "IQM", "spread", "probability of<br>improvement"]
    head = f"{groups}</tr><tr>{''.join(f'<th>{name}</th>' for name in heads)}</tr>"
    rows = "".join(f"<tr>{_cells(summary, peer)}</tr>" for summary in summaries)
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _cells(summary: Summary, peer: str | None) -> str:
    digits = summary.digits
    untrained = "-" if summary.untrained is None else f"{summary.untrained:,.{digits}f}"
    cells = (
        f"<td>{escape(summary.name)}</td><td>{summary.total_steps:,}</td><td>{len(summary.scores)}</td>"
        f"<td>{summary.steps_per_second:,.0f}</td><td>{untrained}</td>"
        f"{_estimate(summary.iqm, 'ours', digits)}<td>{summary.spread:,.{digits}f}</td>"
    )
    if peer and summary.peer:
        theirs = summary.peer
        cells += f"<td>{len(theirs.scores)}</td>{_estimate(theirs.iqm, 'peer', digits)}"
        cells += f"<td>{theirs.spread:,.{digits}f}</td>"
        cells += _estimate(theirs.improvement, "", 2)
    elif peer:
        cells += "<td>-</td>" * 4
    return cells


def _estimate(estimate: Estimate, kind: str, digits: int) -> str:
    value, low, high = (f"{number:,.{digits}f}" for number in estimate)
    return f'<td><span class="{kind}">{value}</span><small>{low} to {high}</small></td>'


def _legend(peer: str | None) -> str:
    text = (
        "A run's score is the mean return of its exported policy over 20 deterministic episodes. IQM is the mean of "
        "the middle half of the seeds' scores, spread their standard deviation. Below a value stands its 95% interval, "
        "by bootstrap over the seeds. Untrained is the mean return before training, with sampled actions. In the "
        "figure, thin lines are the seeds' returns in training, where actions are sampled; the dot at the end is the "
        "score."
    )
    if peer:
        text += (
            f" Probability of improvement: that a run of ours scores above one of {peer}, ties counting half. Only "
            "runs of as many steps are compared."
        )
    return f"<p><small>{escape(text)}</small></p>"


def _machines(results: Sequence[Result]) -> str:
    """Return a list for each setup of machine and versions that runs were made on."""
    setups = itertools.groupby(sorted(results, key=_setup), key=_setup)
    parts = []
    for setup, runs in setups:
        count = f"<p>{len(list(runs))} runs</p>"
        parts.append(count + definitions(json.loads(setup)))
    return "".join(parts)


def _setup(result: Result) -> str:
    return json.dumps({**result.machine, **result.versions})


def _run(result: Result) -> str:
    evaluation = result.evaluation
    title = (
        f"{escape(result.environment)}, seed {result.seed}: {evaluation['mean_return']:,.1f} &plusmn; "
        f"{evaluation['std_return']:,.1f} <small>{result.steps:,} steps, {result.seconds:,.0f} s</small>"
    )
    config = escape(json.dumps(result.config, indent=2))
    return f"<details><summary>{title}</summary><pre>{config}</pre></details>"
