"""Export a run's policy to a bundle."""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from trpo_tf.envs.make import make_env
from trpo_tf.errors import UserError
from trpo_tf.estimation.reward_scaling import ValueScale
from trpo_tf.evaluation.evaluate import check_spaces
from trpo_tf.evaluation.recorder import record_apart
from trpo_tf.evaluation.video import best_kind
from trpo_tf.export import Evidence, GraphForm, write_bundle
from trpo_tf.export.policy.functions import PolicyFunction
from trpo_tf.export.policy.spec import DEFAULT_FORM
from trpo_tf.export.targets.table import DEFAULT_TARGETS
from trpo_tf.exporting.in_process import converted, model_name
from trpo_tf.exporting.provenance import provenance, statistics
from trpo_tf.policies.encoders import without_mask
from trpo_tf.runs.checkpoints import WEIGHTS_FILE, pack
from trpo_tf.runs.folder import Run
from trpo_tf.runs.layout import BUNDLES_FILE, bundles_of
from trpo_tf.serving import Manifest
from trpo_tf.serving.argument_checks import expect, expect_path
from trpo_tf.support.atomic_write import write_atomically


def export_run(
    run: Run,
    out: str | Path,
    *,
    targets: Sequence[str] = DEFAULT_TARGETS,
    form: GraphForm = DEFAULT_FORM,
    episodes: int = 20,
    accept_loss: bool = False,
    signing_key: Path | None = None,
    with_episode: bool = False,
    observer: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Write the bundle of a run's policy to `out`; arguments and errors as in `trpo_tf.export.write_bundle`.

    `with_episode` also records an episode: episode.mp4, or episode.gif if MP4 can't be encoded here.
    """
    expect(run, Run, "run must be a Run, as train and load_run give it", UserError)
    expect_path(out, "out must be the path of the folder to make", UserError)
    out = Path(out).absolute()  # an environment may change the working directory
    policy, env_id, environment = run.policy, run.config.env_id, run.config.made_environment
    files = {WEIGHTS_FILE: pack(run.state.weights())}
    if with_episode:
        observer("recording an episode")
        kind = best_kind()
        files[f"episode.{kind}"] = record_apart(*converted(policy, env_id, run.config), environment, kind).video
    env = make_env(environment)
    evidence = Evidence(
        environment=env,
        scores=policy.scores if policy.is_discrete else None,
        episodes=episodes,
        untrained_return=run.summary.get("untrained", {}).get("mean_return"),
    )
    try:
        check_spaces(policy.spec, env, env_id)
        manifest = write_bundle(
            policy.function,
            policy.spec,
            out,
            targets=targets,
            form=form,
            name=model_name(env_id),
            evidence=evidence,
            provenance=provenance(run),
            statistics=statistics(run),
            files=files,
            accept_loss=accept_loss,
            signing_key=signing_key,
            observer=observer,
        )
    finally:
        env.close()
    _remember(run.folder, out)
    return manifest


def _remember(run: Path, bundle: Path) -> None:
    """Add the bundle's path to the list in the run's folder, for the report, if the folder can be written."""
    with contextlib.suppress(OSError):
        known = bundles_of(run)
        write_atomically(run / BUNDLES_FILE, json.dumps([*known, str(bundle.resolve())], indent=2).encode())


def further_outputs(run: Run, names: Sequence[str]) -> dict[str, PolicyFunction]:
    """Return a graph's outputs besides the action: the distribution's parameters, and the state's value.

    The value is in units of the environment's rewards, unless some were clipped. An output with the same name as an
    input gets the prefix `output_`. Raises `UserError` for other `names` than `distribution` and `value`.
    """
    known: dict[str, Callable[[], dict[str, PolicyFunction]]] = {
        "distribution": run.policy.distribution,
        "value": lambda: {"value": _value(run)},
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"output {unknown[0]!r} is unknown; choose from {', '.join(known)}")
    seen = {part.name for part in run.policy.spec.observation}
    return {
        f"output_{name}" if name in seen else name: output for group in names for name, output in known[group]().items()
    }


def _value(run: Run) -> PolicyFunction:
    learner, state = run.learner, run.state
    network = learner.value_function.network
    scaling = run.config.sampling.value_scaling
    scale = ValueScale.of(scaling, state.return_moments)
    unit = float(state.return_moments.scale) if scaling == "rewards" else 1.0

    def value(seen: Any, _noise: Any) -> Any:
        parts = [tf.constant(part) for part in network.split_array(state.value_theta)]
        encoder = learner.policy.encoder
        inputs = without_mask(encoder(encoder.normalizer(state.observation_moments), seen))
        return (network.apply(parts, inputs)[0][:, 0] * scale.deviation + scale.mean) / unit

    return learner.policy.on_inputs(value)
