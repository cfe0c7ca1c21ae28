"""Provenance of an exported policy: settings, statistics, versions, commit."""

import contextlib
import importlib.metadata
import math
import platform
import subprocess
from typing import Any

from trpo_tf.runs.folder import Run
from trpo_tf.serving.bundle.specs import Statistics

_PACKAGES = (
    "trpo-tf",
    "tensorflow",
    "tensorflow-probability",
    "keras",
    "gymnasium",
    "mujoco",
    "envpool",
    "numpy",
    "onnx",
    "onnxruntime",
    "tf2onnx",
)


def provenance(run: Run) -> dict[str, Any]:
    """Return the provenance of a run's policy, as the manifest records it."""
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


def statistics(run: Run) -> dict[str, Statistics]:
    """Return each input's mean and standard deviation for standardising; empty if the run has observed nothing."""
    moments, policy = run.state.observation_moments, run.functions
    if moments.total < 2:
        return {}
    means, stddevs = policy.encoder.by_part(moments.mean), policy.encoder.by_part(1.0 / moments.scale)
    found = {}
    for spec in policy.spec.observation:
        if spec.name in means:
            # Of a history, the statistics of the newest observation, which is its last.
            newest = slice(-math.prod(spec.shape), None)
            found[spec.name] = Statistics(*(tuple(each[spec.name][newest].tolist()) for each in (means, stddevs)))
    return found


def versions() -> dict[str, str]:
    """Return the installed versions of Python and of the packages that a policy is made with."""
    found = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return {"python": platform.python_version(), **found}


def git_commit() -> str | None:
    """Return the commit of the working directory's Git repository, or None outside of one."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
