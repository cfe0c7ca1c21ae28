"""Run a trained policy in this process, through its exported graph."""

from trpo_tf.config.settings import Config
from trpo_tf.errors import UserError
from trpo_tf.export import convert_policy
from trpo_tf.policies.policy import TrainedPolicy
from trpo_tf.serving import Manifest, Policy
from trpo_tf.serving.argument_checks import expect
from trpo_tf.serving.bundle.files import MODEL_FILE, FileEntry


def converted(policy: TrainedPolicy, name: str, config: Config | None = None) -> tuple[bytes, Manifest]:
    """Return the policy's ONNX graph, and a manifest that lists only the graph and, if given, the settings."""
    spec = policy.spec
    model = convert_policy(policy.function, spec)
    files = {MODEL_FILE: FileEntry.of(model)}
    origin = {} if config is None else {"config": config.to_dict()}
    return model, Manifest(
        model_name(name),
        spec.observation,
        spec.action,
        spec.noise,
        files=files,
        provenance=origin,
        state=spec.state,
        mask=spec.mask,
    )


def model_name(env_id: str) -> str:
    """Return the name that a policy is served under: the environment's without its module, / replaced by -."""
    return env_id.rsplit(":", 1)[-1].replace("/", "-")


def in_process(policy: TrainedPolicy, name: str, config: Config | None = None) -> Policy:
    """Return the policy as its exported graph computes it, without writing a bundle. Raises `UserError`."""
    expect(policy, TrainedPolicy, "policy must be that of a run, as in in_process(run.policy, name)", UserError)
    return Policy(*converted(policy, name, config))
