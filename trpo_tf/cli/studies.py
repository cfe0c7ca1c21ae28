"""Commands that run a whole study: demo, lab, benchmark, search."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from trpo_tf.cli.terminal import FAILED, Changes, Flag, OptionalFolder, fail, say, unset
from trpo_tf.support.shell import in_shell


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train on CartPole-v1, export, verify and serve the policy, query the server, and print the results."""

    out: OptionalFolder = None
    """folder to keep run and bundle in, by default a temporary one"""

    def __call__(self) -> None:
        """Run the demonstration."""
        from trpo_tf.cli.demo import demo

        demo(self.out)


@dataclasses.dataclass(frozen=True)
class Lab:
    """Run exact algorithms on small known MDPs, and compare the expected return eta with its guaranteed lower bound.

    Prints a table of both for each MDP, and draws them over the iterations. It is an error if eta is below a bound, or
    decreases under an algorithm that guarantees that it never does (cpi, mm).
    """

    mdp: Annotated[tuple[str, ...], unset(metavar="NAME ...")] = ()
    """MDPs: chain, gridworld, two-state, garnet; by default all"""
    algo: Annotated[tuple[str, ...], unset(metavar="NAME ...")] = ()
    """algorithms: cpi, mm, pg, npg, npg-kl, trpo; by default all"""
    iterations: int = 200
    """iterations of each algorithm, from the uniform policy"""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("lab")
    """folder for the figure, lab.png"""
    json: Flag = False
    """print every iteration as JSON"""

    def __call__(self) -> None:
        """Run the algorithms, print the tables and draw the figure."""
        from trpo_tf.tabular.lab import ALGORITHMS, laboratory
        from trpo_tf.tabular.mdps import NAMED
        from trpo_tf.tabular.report import draw, table

        runs = laboratory(self.mdp or tuple(NAMED), self.algo or tuple(ALGORITHMS), self.iterations)
        self.out.mkdir(parents=True, exist_ok=True)
        results = []
        for histories in runs:
            results.append(histories)
            if not self.json:
                say(table(histories) + "\n")
        figure = self.out / "lab.png"
        draw(results, figure)
        if self.json:
            everything = [history.to_dict() for histories in results for history in histories]
            say(json.dumps({"histories": everything, "figure": str(figure)}))
        else:
            say(f"drawn in {figure}")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Train every environment of a suite from several seeds, play the exported policies, and report how well they did.

    Each run is a process of its own on one core, here or on a Ray cluster. The same command resumes a benchmark that
    was stopped or killed: finished runs stay, others resume from their checkpoints. Writes results.json, results.csv,
    report.html, report.png.
    """

    suite: Annotated[Positional[tuple[str, ...]], unset(metavar="SUITE|ENVIRONMENT ...")] = ()
    """classic, mujoco, partial (needs memory), unseen or unseen-training (default settings), or environment ids"""
    seeds: int = 5
    """runs of each environment"""
    first_seed: int = 0
    """seed of the first run of each environment; each next run's is one more"""
    workers: int = 1
    """runs in parallel"""
    ray: Annotated[str | None, unset(metavar="ADDRESS")] = None
    """do the runs on the Ray cluster at this address; auto: this machine's cluster; local: Ray on this machine"""
    steps: Annotated[int | None, unset(metavar="INT")] = None
    """environment steps of every run, by default the suite's"""
    peer: Annotated[str | None, unset(metavar="NAME")] = None
    """compare with another trainer's scores: sb3-contrib, or sb3-contrib-recurrent in the suite partial"""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/benchmark")
    """folder of runs, results and report"""

    def __call__(self) -> None:
        """Run the benchmark and print a table; the exit status is 1 if a run failed."""
        from trpo_tf.benchmark.run import benchmark

        seeds = range(self.first_seed, self.first_seed + self.seeds)
        outcome = benchmark(
            self.suite,
            seeds,
            workers=self.workers,
            out=self.out,
            steps=self.steps,
            peer=self.peer,
            ray=self.ray,
        )
        if outcome.table:
            say(f"{outcome.table}\n\nreport written to {self.out / 'report.html'}")
        if outcome.failures:
            for name, reason in outcome.failures.items():
                print(f"{name} failed: {reason}", file=sys.stderr)  # noqa: T201
            fail(f"error: runs failed: {len(outcome.failures)}; the same command tries them again", FAILED)


@dataclasses.dataclass(frozen=True)
class Search:
    """Search for settings with Optuna, stop hopeless trials early, and write the best settings to best.toml.

    Each trial is a process on one core, here or on a Ray cluster. The same command resumes a search that was
    stopped or killed.
    """

    env_id: Annotated[Positional[str], arg(metavar="ENVIRONMENT")]
    """Gymnasium environment"""
    space: Annotated[Path, arg(metavar="FILE")]
    """TOML file of the settings to search, with choices or bounds for each"""
    trials: int = 20
    """trials of the study, including those of earlier calls"""
    jobs: int = 1
    """trials in parallel"""
    ray: Annotated[str | None, unset(metavar="ADDRESS")] = None
    """run the trials on the Ray cluster at this address; auto: this machine's cluster; local: Ray on this machine"""
    seeds: int = 1
    """runs of each trial, whose mean return counts"""
    first_seed: int = 100
    """seed of the first run; report results of other seeds"""
    settings: Annotated[Path | None, unset(name="config", metavar="FILE")] = None
    """settings to start from: the config.toml of a run, by default the environment's preset"""
    changes: Changes = ()
    """change a setting for all trials by its name in config.toml; may be given repeatedly"""
    storage: Annotated[str | None, unset(metavar="FILE|URL")] = None
    """Optuna's storage: a journal file, or the URL of a database; by default study.log in --out"""
    study: Annotated[str | None, unset(metavar="NAME")] = None
    """name of the study, by default the environment's"""
    seed: int = 0
    """seed of the search itself"""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/search")
    """folder of best.toml, the trials' logs and the study"""

    def __call__(self) -> None:
        """Search, and print the best trials; the exit status is 1 if a trial failed."""
        from trpo_tf.config.settings import load_preset, preset_for, read_config, with_changes
        from trpo_tf.search.run import BEST_FILE, search
        from trpo_tf.search.space import read_space
        from trpo_tf.search.study import Search as Wanted
        from trpo_tf.search.study import require_optuna

        require_optuna()
        given = None if self.settings is None else dataclasses.replace(read_config(self.settings), env_id=self.env_id)
        config = with_changes(given or load_preset(preset_for(self.env_id), self.env_id), self.changes)
        wanted = Wanted(
            config=config,
            space=read_space(self.space, config),
            storage=self.storage or str(self.out / "study.log"),
            study=self.study or self.env_id,
            seeds=range(self.first_seed, self.first_seed + self.seeds),
        )
        outcome = search(wanted, self.trials, jobs=self.jobs, out=self.out, seed=self.seed, ray=self.ray)
        if outcome.table:
            best = self.out / BEST_FILE
            say(f"{outcome.table}\n\nbest settings written to {best}")
            say(f"train with: trpo-tf train --config {in_shell(best)}")
        for number, reason in outcome.failures.items():
            print(f"trial process {number} failed: {reason}", file=sys.stderr)  # noqa: T201
        if outcome.failures:
            fail(f"error: trials failed: {len(outcome.failures)}; the same command tries more", FAILED)
