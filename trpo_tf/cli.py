"""The command line: `trpo-tf COMMAND`. Each command imports what it needs, so that `serve` runs without TensorFlow."""

import dataclasses
import importlib.util
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from trpo_tf.config import Config, load_preset, preset_for
from trpo_tf.errors import UserError

if TYPE_CHECKING:
    from serving import Policy
    from trpo_tf.runs import Run

FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130

Flag = FlagCreatePairsOff[bool]
OptionalFolder = Annotated[Path | None, arg(metavar="FOLDER")]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a policy with TRPO, in a new run folder or on from a checkpoint.

    Settings that are not given come from the preset. A run ends with an evaluation through the exported policy; Ctrl-C
    finishes the iteration and saves.
    """

    config: Config = dataclasses.field(default_factory=lambda: Config(""))
    preset: Annotated[str | None, arg(metavar="NAME")] = None
    """settings to start from: an environment's name, or `default`; if absent, the environment's own where it has one"""
    out: OptionalFolder = None
    """the run folder to make, by default runs/ENVIRONMENT-seedSEED"""
    resume: Annotated[Path | None, arg(metavar="RUN")] = None
    """go on with this run instead, from its latest checkpoint"""
    init_from: Annotated[Path | None, arg(metavar="RUN|BUNDLE")] = None
    """start from the weights of this run or bundle"""
    profile: Flag = False
    """trace iterations 3 to 5 for TensorBoard's profiler, and print where an iteration's time went"""

    def __call__(self) -> None:
        """Train, showing progress."""
        if self.resume is None and not self.config.env_id:
            raise UserError("which environment? For example: trpo-tf train CartPole-v1")
        if self.resume is not None and dataclasses.replace(self, resume=None, profile=False) != type(self)():
            raise UserError("--resume goes on with the run's own settings and folder; give only --profile beside it")
        _tensorflow()
        from trpo_tf.reporting.progress import Progress
        from trpo_tf.runs import load_run
        from trpo_tf.training import resume, train, with_env_backend

        config = load_run(self.resume).config if self.resume else with_env_backend(self.config)
        logged: list[dict[str, Any]] = []
        with Progress(config) as progress:

            def observe(metrics: dict[str, Any]) -> None:
                progress.show(metrics)
                if self.profile:
                    logged.append(metrics)

            if self.resume:
                run = resume(self.resume, observer=observe, profile=self.profile)
            else:
                run = train(config, self.out, init_from=self.init_from, observer=observe, profile=self.profile)
        _print_run(run)
        if self.profile:
            _print_profile(run, logged)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Play whole episodes with a run's or a bundle's policy, through its exported graph."""

    source: Positional[Path]
    """a run folder or a bundle folder"""
    episodes: int = 20
    """episodes to play"""
    seed: int = 1_000_000
    """the first episode's seed; each next one's is one more"""
    stochastic: Flag = False
    """sample actions rather than take the most likely"""
    env_id: Annotated[str | None, arg(metavar="NAME")] = None
    """environment, if not the one that the policy was trained on"""
    json: Flag = False
    """print JSON"""

    def __call__(self) -> None:
        """Evaluate and print."""
        policy, env_id = _policy_of(self.source)
        from trpo_tf.evaluation import evaluate

        env_id = self.env_id or env_id
        if env_id is None:
            raise UserError(f"{self.source} names no environment; give one with --env-id")
        result = evaluate(policy, env_id, episodes=self.episodes, seed=self.seed, deterministic=not self.stochastic)
        _print_fields({"environment": env_id, **result.to_dict()}, as_json=self.json)


@dataclasses.dataclass(frozen=True)
class Export:
    """Export a run's policy to a bundle: each target is compared with the Keras policy, on cases and whole episodes.

    A target that acts otherwise, or that loses return, fails the export: no bundle is left, and the exit status is 1.
    """

    run: Positional[Path]
    """the run folder"""
    out: Path
    """the bundle folder to make"""
    target: Annotated[str, arg(metavar="NAME,...")] = "onnx,savedmodel"
    """of onnx (which is always there), savedmodel, onnx-int8, onnx-int8-dynamic, ort, litert, litert-int8, c, c-int8;
    `all` are those that can carry the policy"""
    noise: Annotated[str, arg(metavar="CHOICE")] = "optional"
    """input of the ONNX graph that makes it sample: optional, required, or none"""
    opset: int = 17
    """operator set of the ONNX graph, 13 to 18"""
    batch: Annotated[int | None, arg(metavar="INT")] = None
    """rows that the ONNX graph takes, by default any number"""
    outputs: Annotated[str, arg(metavar="NAME,...")] = ""
    """what the graph answers beside the action: distribution, value"""
    episodes: int = 20
    """episodes that every target plays, of seeds from 0 on"""
    accept_loss: Flag = False
    """write targets that act otherwise or lose return too; the manifest says which"""
    sign: Annotated[Path | None, arg(metavar="FILE")] = None
    """sign the bundle with this private key"""

    def __call__(self) -> None:
        """Export and print what was written."""
        _tensorflow()
        from export import GraphForm, ParityError
        from trpo_tf.exporting import export_run, further_outputs
        from trpo_tf.runs import load_run

        run = load_run(self.run)
        form = GraphForm(self.opset, self.noise, self.batch, further_outputs(run, _names(self.outputs)))
        try:
            export_run(
                run,
                self.out,
                targets=_names(self.target),
                form=form,
                episodes=self.episodes,
                accept_loss=self.accept_loss,
                signing_key=self.sign,
                observer=lambda step: print(f"... {step}", file=sys.stderr, flush=True),  # noqa: T201
            )
        except ParityError as error:
            _say(error.table)
            _fail(f"error: {error}; nothing was written (--accept-loss writes it)", FAILED)
        _print_proof(self.out)
        _say(f"\nbundle written to {self.out}; serve it with: trpo-tf serve {self.out}")


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check a bundle: every file against its checksum, and every target that runs here against the golden cases.

    Where TensorFlow is not installed, policy.onnx alone is run. Returns are those of the export.
    """

    bundle: Positional[Path]
    """the bundle folder"""
    public_key: Annotated[Path | None, arg(metavar="FILE")] = None
    """check the signature, with this key"""
    json: Flag = False
    """print JSON"""

    def __call__(self) -> None:
        """Verify and print."""
        from serving.verify import verify

        result = verify(self.bundle, self.public_key)
        fields = {"bundle": str(self.bundle), "verified": True, **dataclasses.asdict(result)}
        if importlib.util.find_spec("tensorflow") is None:
            _print_fields(fields, as_json=self.json)
            return
        _tensorflow()
        from export.proof import full_table
        from export.verify import verify_targets

        found = verify_targets(self.bundle)
        if self.json:
            _say(json.dumps({**fields, **dataclasses.asdict(found)}))
            return
        _print_fields(fields, as_json=False)
        _say(f"\n{full_table(found.parity, found.sizes, found.latencies)}")
        for name, reason in found.skipped.items():
            _say(f"{name} was not run: {reason}")


@dataclasses.dataclass(frozen=True)
class Predict:
    """Ask a bundle's policy for the action of one observation, printed as JSON."""

    bundle: Positional[Path]
    """the bundle folder"""
    observation: str
    """the observation as JSON, for example '[0.1, 0, -0.2, 0]'; - reads it from standard input"""
    stochastic: Flag = False
    """sample the action rather than take the most likely"""
    seed: Annotated[int | None, arg(metavar="INT")] = None
    """seed of the sample"""

    def __call__(self) -> None:
        """Predict and print."""
        import numpy as np

        from serving import load

        text = sys.stdin.read() if self.observation == "-" else self.observation
        try:
            observation = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"--observation is not JSON ({error}); give for example '[0.1, 0, -0.2, 0]'") from None
        policy = load(self.bundle)
        rng = np.random.default_rng(self.seed)
        action = policy.act(observation, deterministic=not self.stochastic, rng=rng)
        _say(json.dumps(np.asarray(action).tolist()))


@dataclasses.dataclass(frozen=True)
class BenchLatency:
    """Measure how long a bundle's policy takes for one action in process, beside bare ONNX Runtime.

    LiteRT and the TensorFlow SavedModel are measured too, if the bundle holds them and they are installed.
    """

    bundle: Positional[Path]
    """the bundle folder"""
    seconds: float = 5.0
    """time for each, divided into turns"""
    json: Flag = False
    """print JSON"""

    def __call__(self) -> None:
        """Measure and print."""
        from serving.latency import measure_in_turns
        from trpo_tf.latency import callers, figures, table

        if not 0 < self.seconds < math.inf:
            raise UserError("seconds must be above 0 and finite")
        latencies = figures(measure_in_turns(callers(self.bundle), self.seconds))
        _say(json.dumps({"bundle": str(self.bundle), "microseconds": latencies}) if self.json else table(latencies))


@dataclasses.dataclass(frozen=True)
class Serve:
    """Serve a bundle over HTTP, by the Open Inference Protocol; `trpo-tf serve --help` shows the server's options."""

    arguments: Positional[tuple[str, ...]] = ()
    """the bundle folder, and options"""

    def __call__(self) -> None:
        """Serve until asked to stop."""
        from serving.__main__ import main as serve

        sys.exit(serve(self.arguments, "trpo-tf serve"))


@dataclasses.dataclass(frozen=True)
class Demo:
    """Train CartPole-v1, export, verify, serve, and ask the server for actions; print what came of it."""

    out: OptionalFolder = None
    """folder to keep run and bundle in; a temporary one if absent"""

    def __call__(self) -> None:
        """Run everything."""
        _tensorflow()
        from trpo_tf.demo import demo

        demo(self.out)


@dataclasses.dataclass(frozen=True)
class Lab:
    """Run exact algorithms on small known MDPs: the expected return eta against its guaranteed lower bound.

    Prints a table of both for each MDP and draws them, iteration by iteration. It is an error if eta is below a bound,
    or ever falls under an algorithm that never lets it fall (cpi, mm).
    """

    mdp: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """of chain, gridworld, two-state, garnet; by default all"""
    algo: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """of cpi, mm, pg, npg, npg-kl, trpo; by default all"""
    iterations: int = 200
    """iterations of each, from the uniform policy"""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("lab")
    """folder for the drawing, lab.png"""
    json: Flag = False
    """print JSON, of every iteration"""

    def __call__(self) -> None:
        """Run, print and draw."""
        _tensorflow()
        from trpo_tf.tabular.lab import ALGORITHMS, laboratory
        from trpo_tf.tabular.mdps import NAMED
        from trpo_tf.tabular.report import draw, table

        runs = laboratory(self.mdp or tuple(NAMED), self.algo or tuple(ALGORITHMS), self.iterations)
        self.out.mkdir(parents=True, exist_ok=True)
        results = []
        for histories in runs:
            results.append(histories)
            if not self.json:
                _say(table(histories) + "\n")
        figure = self.out / "lab.png"
        draw(results, figure)
        if self.json:
            everything = [history.to_dict() for histories in results for history in histories]
            _say(json.dumps({"histories": everything, "figure": str(figure)}))
        else:
            _say(f"drawn in {figure}")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Train every environment of a suite from several seeds, play the exported policies, and report how well they did.

    Each run is a process of its own on one core. A benchmark that was stopped or killed goes on with the same command:
    finished runs stay, others go on from their checkpoints. Writes results.json, results.csv, report.html, report.png.
    """

    suite: Annotated[Positional[tuple[str, ...]], arg(metavar="SUITE|ENVIRONMENT ...")] = ()
    """classic, mujoco, or environments, which train for as long as their presets say"""
    seeds: int = 5
    """runs of each environment"""
    first_seed: int = 0
    """the first one's seed; each next one's is one more"""
    workers: int = 1
    """runs at a time"""
    steps: Annotated[int | None, arg(metavar="INT")] = None
    """environment steps of every run, by default the suite's"""
    peer: Annotated[str | None, arg(metavar="NAME")] = None
    """compare with another trainer's scores: sb3-contrib"""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/benchmark")
    """folder of runs, results and report"""

    def __call__(self) -> None:
        """Run, and print a table; a run that failed makes the exit status 1."""
        _tensorflow()
        from trpo_tf.benchmark.run import benchmark

        seeds = range(self.first_seed, self.first_seed + self.seeds)
        outcome = benchmark(self.suite, seeds, workers=self.workers, out=self.out, steps=self.steps, peer=self.peer)
        if outcome.table:
            _say(f"{outcome.table}\n\nreport written to {self.out / 'report.html'}")
        if outcome.failures:
            for name, reason in outcome.failures.items():
                print(f"{name} failed: {reason}", file=sys.stderr)  # noqa: T201
            _fail(f"error: runs failed: {len(outcome.failures)}; the same command tries them again", FAILED)


class _AnyConfig(Config):
    # Settings of which some are still to come from a preset, so that they can't be judged yet.
    __doc__ = Config.__doc__

    def __post_init__(self) -> None:
        """Accept them."""


@dataclasses.dataclass(frozen=True)
class _AnyTrain(Train):
    __doc__ = Train.__doc__
    config: _AnyConfig = dataclasses.field(default_factory=lambda: _AnyConfig(""))


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": _AnyTrain,
    "evaluate": Evaluate,
    "export": Export,
    "verify": Verify,
    "predict": Predict,
    "bench-latency": BenchLatency,
    "serve": Serve,
    "demo": Demo,
    "lab": Lab,
    "benchmark": Benchmark,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; wrong use ends with one line and exit status 2, or with a traceback after `--debug`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["serve"]:
        Serve(tuple(arguments[1:]))()  # the server reads its options itself
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # Environments that a user's own module registers are found beside where the command is run.
    sys.path.append(os.getcwd())
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        parse(arguments)()
    except KeyboardInterrupt as interrupt:
        _fail(str(interrupt) or "interrupted", INTERRUPTED)
    except (UserError, OSError, ValueError, RuntimeError, ImportError, FloatingPointError) as error:
        if debug:
            traceback.print_exc()
            sys.exit(WRONG_USE)
        _fail(f"error: {_one_line(error)}", WRONG_USE)


def parse(arguments: list[str]) -> Callable[[], None]:
    """The command that `arguments` ask for; settings given there go before those of the preset.

    Raises `UserError` or `SystemExit`.
    """
    command: Callable[[], None] = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="trpo-tf",
        description="Train policies with TRPO, export them to ONNX, serve them on a CPU. Any command shows a traceback "
        "with its error after --debug.",
        args=arguments,
        config=(OmitArgPrefixes,),
    )
    if isinstance(command, Train) and command.config.env_id:
        env_id = command.config.env_id
        preset = Train(load_preset(command.preset or preset_for(env_id), env_id))
        return tyro.cli(Train, prog="trpo-tf train", args=arguments[1:], default=preset, config=(OmitArgPrefixes,))
    return command


def _tensorflow() -> None:
    from trpo_tf.quiet import import_tensorflow

    import_tensorflow()


def _policy_of(source: Path) -> tuple["Policy", str | None]:
    """The policy of a bundle or a run, and the environment it was trained on."""
    from serving import load
    from serving.manifest import MANIFEST_FILE

    if (source / MANIFEST_FILE).is_file():
        policy = load(source)
        return policy, policy.manifest.provenance.get("environment")
    _tensorflow()
    from trpo_tf.exporting import in_process
    from trpo_tf.runs import is_run, load_run

    if not is_run(source):
        raise UserError(f"{source} is neither a run folder nor a bundle")
    run = load_run(source)
    return in_process(run.policy, run.config.env_id), run.config.env_id


def _print_run(run: "Run") -> None:
    summary = run.summary
    before, after = summary["untrained"], summary["trained"]
    _say(f"{run.folder}: {summary['steps']:,} steps, {summary['steps_per_second']:,.0f} a second")
    if after["episodes"]:
        _say(
            f"mean return {before['mean_return']:.1f} untrained, {after['mean_return']:.1f} +- "
            f"{after['std_return']:.1f} trained, over {after['episodes']} episodes"
        )
    _say(f"export it with: trpo-tf export {run.folder} --out bundle")


def _print_profile(run: "Run", logged: Sequence[dict[str, Any]]) -> None:
    from trpo_tf.reporting.profiling import FIRST_TRACED, phase_table

    _say(f"\n{phase_table(logged[FIRST_TRACED - 1 :])}\n")
    _say(f"see the trace with tensorboard-plugin-profile: tensorboard --logdir {run.folder}")


def _names(text: str) -> list[str]:
    """Of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _print_proof(bundle: Path) -> None:
    from export.latency import read_latencies
    from export.model_card import target_sizes
    from export.proof import full_table
    from serving.manifest import read_manifest

    manifest = read_manifest(bundle)
    _say(full_table(manifest.parity, target_sizes(manifest), read_latencies(bundle)))


def _print_fields(fields: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        _say(json.dumps(fields))
        return
    width = max(map(len, fields))
    for name, value in fields.items():
        _say(f"{name:<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def _show_warning(message: Warning | str, category: type[Warning], *_where: Any) -> None:
    if not issubclass(category, DeprecationWarning | FutureWarning):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)  # noqa: T201


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str, status: int) -> NoReturn:
    print(message, file=sys.stderr)  # noqa: T201
    sys.exit(status)


if __name__ == "__main__":
    main()
