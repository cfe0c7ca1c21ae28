"""A benchmark from beginning to end: plan, runs, results, report."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trpo_tf.benchmark.job_start import starting
from trpo_tf.benchmark.plans import Plan, plan
from trpo_tf.benchmark.pool import Job, run_jobs
from trpo_tf.benchmark.progress import benchmark_progress
from trpo_tf.benchmark.results import (
    LOG_FILE,
    Result,
    folder_of,
    is_finished,
    read_result,
    require_same_settings,
)
from trpo_tf.benchmark.scores.peers import PeerRun, load_peer
from trpo_tf.config.settings import Config
from trpo_tf.errors import UserError
from trpo_tf.sampling.ray_connection import check_address
from trpo_tf.serving.errors import install
from trpo_tf.support.atomic_write import write_atomically


class Outcome(NamedTuple):
    """Outcome of a benchmark."""

    table: str
    """table of the scores; empty if no run has a result"""
    failures: dict[str, str]
    """reason of each failure, by the run's name"""


def benchmark(
    names: Sequence[str],
    seeds: range,
    *,
    workers: int,
    out: Path,
    steps: int | None = None,
    peer: str | None = None,
    ray: str | None = None,
) -> Outcome:
    """Train, export and evaluate every run that has no result in `out` yet, and write a report of all.

    Args:
        names: suites and environments.
        seeds: seeds of every environment.
        workers: runs at a time.
        out: folder of all files, new or from an earlier call with the same settings.
        steps: environment steps of every run, by default the suite's.
        peer: trainer to compare with.
        ray: address of the Ray cluster whose machines do the runs, "local" for Ray on this machine alone, "auto" for
            the cluster that this machine belongs to; None: processes on this machine. All machines see `out`.

    Raises:
        UserError: something in the arguments can't work, or `out` has runs of other settings.
        KeyboardInterrupt: asked to stop; the runs that were under way have saved a checkpoint.
    """
    if importlib.util.find_spec("rliable") is None:
        raise UserError(f"a benchmark needs rliable; install it with: {install('benchmark')}")
    if workers < 1:
        raise UserError("workers must be at least 1")
    if ray is not None:
        check_address(ray)
    peer_runs = load_peer(peer) if peer else []
    planned = plan(names, seeds, steps)
    for config in planned.configs:
        require_same_settings(folder_of(out, config), config)
    failures = _run_all(planned.configs, workers, out, ray)
    finished = [folder_of(out, config) for config in planned.configs if is_finished(folder_of(out, config))]
    results = sorted(map(read_result, finished), key=lambda result: _order(planned, result))
    notes = [*planned.left_out, *(f"{name} failed: {reason}" for name, reason in failures.items())]
    return Outcome(_write_report(out, planned, results, notes, peer, peer_runs) if results else "", failures)


def _order(planned: Plan, result: Result) -> tuple[int, int]:
    environments = list(dict.fromkeys(config.env_id for config in planned.configs))
    return environments.index(result.environment), result.seed


def _run_all(configs: Sequence[Config], workers: int, out: Path, ray: str | None) -> dict[str, str]:
    """Do the runs that are not finished; return the names of failed ones, with reasons."""
    folders = {folder_of(out.absolute(), config): config for config in configs}
    failures: dict[str, str] = {}
    steps = {folder: config.total_steps for folder, config in folders.items()}
    with starting(ray, workers) as start, benchmark_progress(steps) as progress:
        jobs = []
        for folder, config in folders.items():
            if is_finished(folder):
                progress.finished(folder, read_result(folder), before=True)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                jobs.append(Job(folder, _arguments(folder, config), folder / LOG_FILE))

        def ended(job: Job, reason: str | None) -> None:
            if reason is None:
                progress.finished(job.folder, read_result(job.folder))
            else:
                failures[job.folder.name] = reason
                progress.failed(job.folder, reason)

        try:
            run_jobs(
                jobs,
                workers,
                ended=ended,
                watch=lambda running: progress.running([job.folder for job in running]),
                start=start,
            )
        except KeyboardInterrupt:
            done = sum(map(is_finished, folders))
            raise KeyboardInterrupt(
                f"stopped with {done} of {len(folders)} runs finished; the same command goes on"
            ) from None
    return failures


def _arguments(folder: Path, config: Config) -> tuple[str, ...]:
    return "-m", "trpo_tf.benchmark.worker", str(folder), json.dumps(config.to_dict())


def _write_report(
    out: Path,
    planned: Plan,
    results: Sequence[Result],
    notes: Sequence[str],
    peer: str | None,
    peer_runs: Sequence[PeerRun],
) -> str:
    from trpo_tf.benchmark.scores.figures import draw
    from trpo_tf.benchmark.scores.report import html_report
    from trpo_tf.benchmark.scores.summary import summarize
    from trpo_tf.benchmark.scores.tables import results_csv, results_json, terminal_table

    summaries = summarize(results, peer_runs, planned.untuned)
    page = html_report(summaries, results, notes, peer, draw(summaries, results, peer, "svg"))
    for name, content in (
        ("results.json", results_json(results, summaries, peer).encode()),
        ("results.csv", results_csv(results).encode()),
        ("report.html", page.encode()),
        ("report.png", draw(summaries, results, peer, "png")),
    ):
        write_atomically(out / name, content)
    return terminal_table(summaries, peer)
