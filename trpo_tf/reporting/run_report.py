"""HTML report of a run: its training and its export, in one file. The run need not have ended."""

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from trpo_tf.config.algorithms import find_algorithm
from trpo_tf.config.former_names import METRICS, renamed
from trpo_tf.config.settings import Config, read_config, upgraded
from trpo_tf.envs.make import make_env
from trpo_tf.errors import UserError
from trpo_tf.export.parity.latency import read_latencies
from trpo_tf.export.parity.table import columns_of, proof_rows
from trpo_tf.export.targets.table import target_sizes
from trpo_tf.reporting.charts import line_chart, share_bar
from trpo_tf.reporting.html import definitions, page, table
from trpo_tf.runs.layout import CONFIG_FILE, METRICS_FILE, bundles_of, read_summary, require_run
from trpo_tf.serving.bundle.files import MANIFEST_FILE, MODEL_FILE
from trpo_tf.serving.bundle.manifest import Manifest, read_manifest
from trpo_tf.serving.errors import BundleError
from trpo_tf.support.phase_timer import PHASES

Logged = Sequence[Mapping[str, Any]]

_COMPILED = 2
"""Number of first iterations, whose times are those of compiling."""


@dataclass(frozen=True)
class Story:
    """Content of a run's folder: settings, an entry for each iteration, the summary, and its bundle if any."""

    folder: Path
    config: Config
    logged: Logged
    summary: Mapping[str, Any]
    bundle: Path | None

    @property
    def is_over(self) -> bool:
        """Whether training has finished."""
        return "trained" in self.summary


def read_story(folder: Path, bundle: Path | None = None) -> Story:
    """Read a run's folder. Without `bundle`, find one with the same settings in the folder, or next to it.

    Raises `UserError` if `folder` is not a run, and `BundleError` if `bundle` is not a bundle.
    """
    require_run(folder)
    config = read_config(folder / CONFIG_FILE)
    if bundle is not None:
        read_manifest(bundle)
    former = METRICS | {"control": find_algorithm(config.algo).adapts or "radius"}
    logged, summary = _logged(folder / METRICS_FILE, former), read_summary(folder)
    return Story(folder, config, logged, summary, bundle or _found_bundle(folder, config))


def html_report(story: Story) -> str:
    """Render the report as one page."""
    config = story.config
    parts = [
        f"<h1>{escape(config.env_id)}</h1>{_lead(story)}",
        f'<div class="cards">{_cards(story)}</div>',
        f"<h2>Training</h2>{_charts(story)}",
        _reported(story),
        f"<h2>Where an iteration's time goes</h2>{_time(story.logged)}",
        f"<h2>Updates</h2>{_updates(story.logged)}",
        f"<h2>Export</h2>{_export(story.bundle)}",
        f"<h2>Environment</h2>{_environment(config)}",
        f"<h2>Where it comes from</h2>{_provenance(story)}",
        f"<h2>Settings</h2><pre>{escape((story.folder / CONFIG_FILE).read_text('utf-8-sig'))}</pre>",
    ]
    return page(f"Run of {config.env_id}", parts)


def _logged(path: Path, former: Mapping[str, str]) -> Logged:
    """Read the entries of all iterations, up to a line that is cut off, as that of a killed run may be."""
    entries = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            entries.append(renamed(json.loads(line), former))
        except (ValueError, AttributeError):
            break
    return entries


def _found_bundle(folder: Path, config: Config) -> Path | None:
    """Find the newest bundle with these settings: where the run was exported to, in its folder or next to it."""
    found = {*folder.absolute().glob(f"*/{MANIFEST_FILE}"), *folder.absolute().parent.glob(f"*/{MANIFEST_FILE}")}
    found |= {path for bundle in bundles_of(folder) if (path := Path(bundle) / MANIFEST_FILE).is_file()}
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            manifest = read_manifest(path.parent)
        except BundleError:
            continue
        if _config_of(manifest) == config:
            return path.parent
    return None


def _config_of(manifest: Manifest) -> Config | None:
    """Return the settings that a bundle's policy was trained with; None if they can't be read."""
    try:
        return Config.from_dict(upgraded(manifest.provenance["config"]))
    except (KeyError, TypeError, AttributeError, UserError):
        return None


def _lead(story: Story) -> str:
    done = story.logged[-1] if story.logged else {"steps": 0, "iteration": 0}
    state = "It is trained." if story.is_over else f"It goes on, or was stopped, at {done['steps']:,} steps."
    best = story.summary.get("best_at_steps")
    kept = f" Its policy is that of {best:,} steps, the best of the periodic evaluations." if best else ""
    text = f"{story.config.algo}, seed {story.config.seed}, {story.config.total_steps:,} steps wanted. {state}{kept}"
    return f'<p class="lead">{escape(text)}</p>'


def _cards(story: Story) -> str:
    summary, last = story.summary, story.logged[-1] if story.logged else {}
    cards = []
    for name, title in (
        ("untrained", "return before, sampled"),
        ("trained", "return trained, exported policy"),
    ):
        if summary.get(name, {}).get("episodes"):
            score = summary[name]
            deviation = f"&plusmn; {score['std_return']:,.1f} over {score['episodes']} episodes"
            cards.append((f"{score['mean_return']:,.1f}", title, deviation))
    if last.get("mean_return") is not None:
        cards.append((f"{last['mean_return']:,.1f}", "return in training, at last", "sampled, mean of 20 episodes"))
    if last:
        seconds = sum(_seconds(entry) for entry in story.logged)
        cards.append((f"{last['steps']:,}", "environment steps", f"{last['iteration']:,} iterations"))
        cards.append((f"{last['steps'] / seconds:,.0f}", "steps a second", f"{seconds:,.0f} s, compiling included"))
    return "".join(
        f"<div><small>{title}</small><b>{value}</b><small>{more}</small></div>" for value, title, more in cards
    )


def _charts(story: Story) -> str:
    logged, config = story.logged, story.config
    if not logged:
        return "<p>No iteration is done yet.</p>"
    steps = [entry["steps"] for entry in logged]

    def values(name: str) -> list[float | None]:
        return [entry.get(name) for entry in logged]

    trained = story.summary.get("trained", {})
    score = [trained["mean_return"]] * len(steps) if trained.get("episodes") else ()
    radius = values("radius") if find_algorithm(config.algo).adapts == "radius" else ()
    charts = [
        line_chart("Return", steps, values("mean_return"), limit=score),
        line_chart("Mean KL in nats", steps, values("mean_kl"), limit=radius),
        line_chart("Entropy in nats", steps, values("entropy")),
        line_chart("Explained variance", steps, values("explained_variance")),
        line_chart("Line-search steps", steps, values("line_search_tries")),
        line_chart("Conjugate gradient iterations", steps, values("cg_iterations")),
        line_chart("Conjugate gradient residual", steps, values("cg_residual"), log=True),
        line_chart("Steps a second", steps, values("steps_per_second")),
    ]
    text = "Over environment steps. Dashed: at the return, the exported policy's score; at the KL, the trust region."
    return f'<p><small>{text}</small></p><div class="charts">{"".join(charts)}</div>'


def _reported(story: Story) -> str:
    """Draw the numbers in the environment's `info` over the steps, and list their means in both evaluations."""
    entries, evaluations = story.logged, [story.summary.get(name, {}) for name in ("untrained", "trained")]
    known = {key.partition("/")[2] for entry in entries for key in entry if key.startswith(("info/", "eval_info/"))}
    names = sorted(known.union(*(evaluation.get("info", {}) for evaluation in evaluations)))
    if not names:
        return ""
    steps = [entry["steps"] for entry in entries]

    def latest(key: str) -> list[float | None]:
        """Return the values so far: not every iteration has an end of an episode, or an evaluation."""
        values = (entry.get(key) for entry in entries)
        return list(itertools.accumulate(values, lambda before, value: before if value is None else value))

    charts = [line_chart(name, steps, latest(f"info/{name}"), limit=latest(f"eval_info/{name}")) for name in names]
    rows = [[name, *(_mean(evaluation, name) for evaluation in evaluations)] for name in names]
    text = (
        "Means of the numbers in <code>info</code>: over episodes' last steps, or over all steps if the name begins "
        "with reward. Dashed: in periodic evaluations."
    )
    before_and_after = table(("number", "before training", "after training"), rows)
    drawn = f'<div class="charts">{"".join(charts)}</div>' if entries else ""
    return f"<h2>What the environment reports</h2><p><small>{text}</small></p>{drawn}{before_and_after}"


def _mean(evaluation: Mapping[str, Any], name: str) -> str:
    mean = evaluation.get("info", {}).get(name)
    return "" if mean is None else f"{mean:.4g}"


def _time(logged: Logged) -> str:
    entries = logged[_COMPILED:]
    if not entries:
        return "<p><small>Not known before the third iteration: the first ones compile.</small></p>"
    return share_bar({name: sum(entry[f"seconds_{name}"] for entry in entries) / len(entries) for name in PHASES})


def _seconds(entry: Mapping[str, Any]) -> float:
    return float(sum(entry[f"seconds_{name}"] for name in PHASES))


def _updates(logged: Logged) -> str:
    counts = Counter(entry["update_status"] for entry in logged)
    return table(("update", "iterations"), [(status, f"{count:,}") for status, count in counts.most_common()])


def _export(bundle: Path | None) -> str:
    if bundle is None:
        return "<p><small>No bundle of this run was found in its folder or next to it; --bundle names one.</small></p>"
    manifest, latencies = read_manifest(bundle), read_latencies(bundle)
    rows = list(proof_rows(manifest.parity, target_sizes(manifest)))
    measured = [f"{at['p50']:,.0f} / {at['p99']:,.0f}" for at in (latencies[row[0]]["1"] for row in rows)]
    columns = (*columns_of(manifest.parity), "us at 1, p50 / p99")
    shown = table(columns, [[*row, latency] for row, latency in zip(rows, measured, strict=True)])
    return f"{shown}{definitions(_described(bundle, manifest))}"


def _described(bundle: Path, manifest: Manifest) -> dict[str, Any]:
    origin = manifest.provenance
    rows = {"bundle": bundle, "steps at export": f"{origin.get('steps', 0):,}", "commit": origin.get("git_commit")}
    sha256 = manifest.files[MODEL_FILE].sha256
    return {name: value for name, value in rows.items() if value is not None} | {"sha256 of the graph": sha256}


def _environment(config: Config) -> str:
    rows = {"id": config.env_id, "environments": f"{config.sampling.num_envs} by {config.sampling.env_backend}"}
    try:
        env = make_env(config.made_environment)
    except UserError as error:
        return definitions({**rows, "spaces": error})
    limit = env.spec.max_episode_steps if env.spec else None
    rows |= {"observation": str(env.observation_space), "action": str(env.action_space)}
    env.close()
    return definitions({**rows, "steps an episode, at most": limit or "no limit"})


def _provenance(story: Story) -> str:
    changed = (story.folder / METRICS_FILE if story.logged else story.folder / CONFIG_FILE).stat().st_mtime
    rows = {
        "run": story.folder,
        "algorithm": story.config.algo,
        "seed": story.config.seed,
        "began": f"{datetime.fromtimestamp((story.folder / CONFIG_FILE).stat().st_mtime):%Y-%m-%d %H:%M:%S}",
        "last iteration": f"{datetime.fromtimestamp(changed):%Y-%m-%d %H:%M:%S}",
    }
    return definitions({**rows, **story.summary.get("versions", {})})
