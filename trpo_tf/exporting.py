"""From a run to a bundle, or to a policy in this process."""

import importlib.metadata
import itertools
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from export import Evidence, convert_policy, write_bundle
from export.parity import play
from serving import Manifest, Policy
from serving.observations import Observation, map_parts
from trpo_tf.checkpoints import pack
from trpo_tf.envs import make_env
from trpo_tf.evaluation import FIRST_SEED
from trpo_tf.policies.policy import TrainedPolicy
from trpo_tf.runs import Run

WEIGHTS_FILE = "weights.npz"

_RECORDED_STEPS = 500
_PACKAGES = (
    "trpo-tf",
    "tensorflow",
    "tensorflow-probability",
    "keras",
    "gymnasium",
    "numpy",
    "onnx",
    "onnxruntime",
    "tf2onnx",
)


def export_run(run: Run, out: Path) -> Manifest:
    """Write the bundle of a run's policy to `out`; errors as in `export.write_bundle`."""
    policy, env_id = run.policy, run.config.env_id
    env = make_env(env_id)
    evidence = Evidence(
        observations=recorded_observations(in_process(policy, "policy"), env_id),
        environment=env,
        scores=policy.scores if policy.is_discrete else None,
    )
    try:
        return write_bundle(
            policy.function,
            policy.spec,
            out,
            name=model_name(env_id),
            evidence=evidence,
            provenance=provenance(run),
            files={WEIGHTS_FILE: pack(run.state.weights())},
        )
    finally:
        env.close()


def in_process(policy: TrainedPolicy, name: str) -> Policy:
    """The policy through its exported graph, without a bundle."""
    spec = policy.spec
    manifest = Manifest(name, spec.observation, spec.action, spec.noise)
    return Policy(convert_policy(policy.function, spec), manifest)


def model_name(env_id: str) -> str:
    """The name a policy is served by: the environment's, without module and namespace."""
    return env_id.rsplit(":", 1)[-1].replace("/", "-")


def recorded_observations(policy: Policy, env_id: str) -> Observation:
    """Observations [n, ...] that the policy itself visits."""
    noise = np.zeros((1, *policy.manifest.noise.shape), np.float32)
    env = make_env(env_id)
    steps = itertools.chain.from_iterable(play(policy.run, env, FIRST_SEED + k, noise) for k in itertools.count())
    first, *rest = [observation for observation, _ in itertools.islice(steps, _RECORDED_STEPS)]
    env.close()
    return map_parts(lambda *parts: np.stack(parts), first, *rest)  # type: ignore[no-any-return]


def provenance(run: Run) -> dict[str, Any]:
    """Where the policy comes from."""
    return {
        "environment": run.config.env_id,
        "algorithm": run.config.algo,
        "config": run.config.to_dict(),
        "seed": run.config.seed,
        "steps": run.state.steps,
        "summary": dict(run.summary),
        "git_commit": git_commit(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that make a policy."""
    return {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in _PACKAGES}}


def git_commit() -> str | None:
    """The commit of the working folder's repository, if it is one."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
