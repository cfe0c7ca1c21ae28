"""Train sb3-contrib's RecurrentPPO on the suite `partial` with RL Baselines3 Zoo's settings, and record its scores.

`python -m benchmarks.peers.recurrent --seeds 3` adds rows to trpo_tf/benchmark/peers/sb3-contrib-recurrent.csv as runs
end, and leaves out those that it has. Names of environments choose among the suite's. It needs sb3-contrib, PyTorch and
MuJoCo, and of trpo-tf only what needs no TensorFlow: trpo_tf/benchmark/peers/README.md.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import sb3_contrib
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from benchmarks.peers.tuned import COLUMNS, SCORES
from benchmarks.peers.unseen import play, train_missing
from trpo_tf.benchmark.suites import SUITES

STEPS = {env_id.rpartition(":")[2]: (env_id, steps) for env_id, steps in SUITES["partial"].items()}
"""Name of an environment -> its id, with the module that registers it, and its steps."""

LSTM_64 = {
    "ortho_init": False,
    "activation_fn": torch.nn.ReLU,
    "lstm_hidden_size": 64,
    "enable_critic_lstm": True,
    "net_arch": {"pi": [64], "vf": [64]},
}
BULLET = {
    "normalize": True,
    "n_envs": 16,
    "n_steps": 256,
    "batch_size": 128,
    "gae_lambda": 0.9,
    "clip_range": lambda left: 0.4 * left,
    "policy_kwargs": {
        "ortho_init": False,
        "activation_fn": torch.nn.ReLU,
        "lstm_hidden_size": 128,
        "enable_critic_lstm": True,
        "net_arch": {"pi": [], "vf": []},
    },
}
SETTINGS: dict[str, dict[str, Any]] = {
    "CartPoleWithoutVelocities-v0": {
        "normalize": True,
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "learning_rate": lambda left: 0.001 * left,
        "clip_range": lambda left: 0.2 * left,
        "policy_kwargs": LSTM_64,
    },
    "PendulumWithoutVelocity-v0": {
        "normalize": True,
        "n_envs": 4,
        "n_steps": 1024,
        "gamma": 0.9,
        "learning_rate": 1e-3,
        "use_sde": True,
        "sde_sample_freq": 4,
        "policy_kwargs": LSTM_64,
    },
    "Cue-v0": {},
    "HopperWithoutVelocities-v0": BULLET,
    "Walker2dWithoutVelocities-v0": BULLET,
}
"""What differs from RecurrentPPO's defaults. The learning rate and the clip range may depend on the share left."""


def measure(env_id: str, seed: int, steps: int) -> dict[str, Any]:
    """Train, and play deterministic episodes with the normaliser's statistics at the end."""
    settings = {"normalize": False, "n_envs": 1, **SETTINGS[env_id.rpartition(":")[2]]}
    normalize, count = settings.pop("normalize"), settings.pop("n_envs")
    envs: VecEnv = make_vec_env(env_id, n_envs=count, seed=seed)
    if normalize:
        envs = VecNormalize(envs, gamma=settings.get("gamma", 0.99))
    model = sb3_contrib.RecurrentPPO("MlpLstmPolicy", envs, seed=seed, device="cpu", **settings)
    started = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - started
    seen = {"normalize": envs.normalize_obs} if isinstance(envs, VecNormalize) else {}
    returns = play(model, env_id, steps, deterministic=True, **seen)
    version = f"{sb3_contrib.__version__}, torch {torch.__version__}"
    score = returns.mean(), returns.std(), round(seconds, 1), version
    return dict(zip(COLUMNS, (env_id, seed, steps, *score, "zoo", None), strict=True))


def main() -> None:
    """Train what is not there yet, seed by seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(STEPS)}; by default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="environment steps, by default the suite's")
    parser.add_argument(
        "--out", type=Path, default=SCORES.with_name("sb3-contrib-recurrent.csv"), help="CSV file to append to"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(STEPS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose of {', '.join(STEPS)}")
    chosen = [STEPS[name] for name in arguments.names or STEPS]
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    steps_of = {env_id: arguments.steps or steps for env_id, steps in chosen}
    train_missing(arguments.out, steps_of, seeds, "zoo", measure)


if __name__ == "__main__":
    main()
