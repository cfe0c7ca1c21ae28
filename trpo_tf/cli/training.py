"""Commands that train and evaluate a policy."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from trpo_tf.cli.terminal import Changes, Flag, OptionalFolder, print_fields, say, unset
from trpo_tf.config.environment import Environment
from trpo_tf.config.settings import Config
from trpo_tf.errors import UserError
from trpo_tf.export.support.heavy_imports import uncollected
from trpo_tf.serving.argument_checks import expect_count
from trpo_tf.support.graceful_stop import raise_if_interrupted
from trpo_tf.support.shell import in_shell

if TYPE_CHECKING:
    from trpo_tf.evaluation.evaluate import Evaluation
    from trpo_tf.runs.folder import Run
    from trpo_tf.serving import Manifest


_BESIDE_RESUME = "--total-steps, --workers, --ray, --step-timeout and --profile"


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a policy with TRPO, in a new run folder or from a run's checkpoint.

    Settings that are not given come from the preset. A run ends with an evaluation through the exported policy; Ctrl-C
    finishes the iteration and saves.
    """

    config: Config = dataclasses.field(default_factory=lambda: Config(""))
    preset: Annotated[str | None, unset(metavar="NAME")] = None
    """settings to start from: an environment's name, or `default`; by default the environment's own, if it has one"""
    settings: Annotated[Path | None, unset(name="config", metavar="FILE")] = None
    """settings to start from: the config.toml of a run, instead of a preset"""
    changes: Changes = ()
    """change a setting by its name in config.toml; may be given repeatedly"""
    out: OptionalFolder = None
    """the run folder to make, by default runs/ENVIRONMENT-seedSEED in lower case"""
    resume: Annotated[Path | None, unset(metavar="RUN")] = None
    """resume this run instead, from its latest checkpoint; with --total-steps also if it is complete"""
    init_from: Annotated[Path | None, unset(metavar="RUN|BUNDLE")] = None
    """start from the weights of this run or bundle"""
    workers: int = 0
    """processes that step the environments, at most as many as --shards; 0: step them in this one"""
    ray: Annotated[str | None, unset(metavar="ADDRESS")] = None
    """run the workers on the Ray cluster at this address; auto: this machine's cluster; local: Ray on this machine"""
    step_timeout: Annotated[float, arg(metavar="SECONDS")] = 0.0
    """replace a worker whose environments do not finish a step in this time; 0: never"""
    profile: Flag = False
    """trace iterations 3 to 5 for TensorBoard's profiler, and print where an iteration's time went"""

    def __call__(self) -> None:
        """Train the policy, showing progress, and print a summary."""
        if self.resume is None and not self.config.env_id:
            raise UserError("which environment? For example: trpo-tf train CartPole-v1")
        if self.resume is not None and self._settings_beside_resume():
            raise UserError(f"--resume continues with the run's own settings; it takes only {_BESIDE_RESUME}")
        if self.resume is None:
            from trpo_tf.training.early_checks import check_new_run

            out = check_new_run(self.config, self.out)
        else:
            from trpo_tf.runs.layout import require_run

            require_run(self.resume)
        with uncollected():
            from trpo_tf.sampling.workers import Workers
            from trpo_tf.training.train import resume, train
        raise_if_interrupted()

        workers = Workers(self.workers, self.step_timeout, self.ray)
        logged: list[dict[str, Any]] = []
        if self.resume:
            total = self.config.total_steps or None
            run = resume(self.resume, total_steps=total, workers=workers, observer=logged.append, profile=self.profile)
        else:
            run = train(
                self.config,
                out,
                init_from=self.init_from,
                workers=workers,
                observer=logged.append,
                profile=self.profile,
            )
        _print_run(run)
        if self.profile:
            _print_profile(run, logged)

    def _settings_beside_resume(self) -> bool:
        given = dataclasses.asdict(self), dataclasses.asdict(type(self)())
        for values in given:
            del values["resume"], values["config"]["total_steps"], values["profile"]
            del values["workers"], values["step_timeout"], values["ray"]
        return given[0] != given[1]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Play episodes with a run's or a bundle's policy, through its exported graph."""

    source: Positional[Path]
    """a run folder or a bundle folder"""
    episodes: int = 20
    """episodes to play"""
    seed: int = 1_000_000
    """seed of the first episode; each next episode's is one more"""
    stochastic: Flag = False
    """sample actions instead of taking the most likely"""
    env_id: Annotated[str | None, unset(metavar="NAME")] = None
    """environment, if not the one that the policy was trained on"""
    longest_episode: Annotated[int | None, unset(metavar="INT")] = None
    """steps after which an episode is cut; by default total_steps / episodes, or its limit (up to 1,000) if more"""
    workers: int = 0
    """processes that play the episodes, with the same results; 0: this one"""
    json: Flag = False
    """print JSON"""

    def __call__(self) -> None:
        """Evaluate the policy and print the statistics."""
        if self.longest_episode is not None and self.longest_episode < 1:
            raise UserError("longest_episode must be at least 1")
        expect_count(self.episodes, "episodes", 1, UserError)
        expect_count(self.workers, "workers", 0, UserError)
        model, manifest, recorded = _graph_of(self.source)
        from trpo_tf.evaluation.evaluate import cut_note

        environment = self.env_id or recorded
        if environment is None:
            raise UserError(f"{self.source} names no environment; give one with --env-id")
        # What an environment prints, pygame's greeting for example, is no JSON.
        with contextlib.redirect_stdout(sys.stderr) if self.json else contextlib.nullcontext():
            result = self._evaluated(model, manifest, environment).to_dict()
        if not self.json:
            result |= {f"info/{name}": value for name, value in result.pop("info").items()}
            if not result["episodes_cut"]:
                del result["longest_episode"]  # the length at which it would have cut, not that of an episode
        print_fields({"environment": str(environment), **result}, as_json=self.json)
        if (note := cut_note(result)) and not self.json:
            say(note)

    def _evaluated(self, model: bytes, manifest: "Manifest", environment: str | Environment) -> "Evaluation":
        arguments: dict[str, Any] = {
            "episodes": self.episodes,
            "seed": self.seed,
            "deterministic": not self.stochastic,
            "longest": self.longest_episode,
        }
        if self.workers:
            from trpo_tf.evaluation.in_workers import evaluate_in_workers

            return evaluate_in_workers(model, manifest, environment, workers=self.workers, **arguments)
        from trpo_tf.evaluation.evaluate import evaluate
        from trpo_tf.serving import Policy
        from trpo_tf.training.progress import SlowLine, watch

        shown = watch(SlowLine(), "evaluating", self.episodes)
        return evaluate(Policy(model, manifest), environment, on_step=shown, **arguments)


def _graph_of(source: Path) -> tuple[bytes, "Manifest", Environment | None]:
    """Return the graph and manifest of a bundle's or a run's policy, and the environment it was trained on."""
    if is_bundle(source):
        from trpo_tf.serving.runtime.policy import read_graph

        model, manifest = read_graph(source)
        return model, manifest, Environment.recorded(manifest.provenance)
    from trpo_tf.runs.layout import is_run

    if not is_run(source):
        raise UserError(f"{source} is neither a run folder nor a bundle")
    with uncollected():
        from trpo_tf.exporting.in_process import converted
        from trpo_tf.runs.folder import load_run

    run = load_run(source)
    return *converted(run.policy, run.config.env_id, run.config), run.config.made_environment


def is_bundle(source: Path) -> bool:
    """Return whether the folder is a bundle."""
    from trpo_tf.serving.bundle.files import MANIFEST_FILE

    return (source / MANIFEST_FILE).is_file()


def _print_run(run: "Run") -> None:
    from trpo_tf.evaluation.evaluate import cut_note, success_rate
    from trpo_tf.runs.layout import shown

    summary, folder = run.summary, shown(run.folder)
    before, after = summary["untrained"], summary["trained"]
    say(f"{folder}: {summary['steps']:,} steps, {summary['steps_per_second']:,.0f} a second")
    if after["episodes"]:
        say(
            f"mean return {before['mean_return']:.1f} before training, {after['mean_return']:.1f} +- "
            f"{after['std_return']:.1f} after, over {after['episodes']} episodes"
        )
        if (rate := success_rate(after)) is not None:
            say(f"success rate {rate:.2f}")
        if note := cut_note(after):
            say(note)
    if summary["best_at_steps"] is not None:
        say(f"its policy is that of {summary['best_at_steps']:,} steps, the best of the periodic evaluations")
    say(f"export it with: trpo-tf export {in_shell(folder)} --out bundle")


def _print_profile(run: "Run", logged: Sequence[dict[str, Any]]) -> None:
    from trpo_tf.runs.layout import shown
    from trpo_tf.runs.profiler import FIRST_TRACED, phase_table

    say(f"\n{phase_table(logged[FIRST_TRACED - 1 :])}\n")
    say(f"see the trace with tensorboard-plugin-profile: tensorboard --logdir {in_shell(shown(run.folder))}")
