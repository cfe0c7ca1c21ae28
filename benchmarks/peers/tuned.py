"""Train one run of sb3-contrib's TRPO with RL Baselines3 Zoo's settings, and append its score.

`python -m benchmarks.peers.tuned HalfCheetah-v5 --seed 0` adds a row to trpo_tf/benchmark/peers/sb3-contrib.csv. It
needs sb3-contrib and PyTorch, and nothing of trpo-tf: trpo_tf/benchmark/peers/README.md says how to install them.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import sb3_contrib
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

SCORES = Path(__file__).parents[2] / "trpo_tf" / "benchmark" / "peers" / "sb3-contrib.csv"
COLUMNS = (
    "environment",
    "seed",
    "steps",
    "mean_return",
    "std_return",
    "seconds",
    "version",
    "settings",
    "untrained_return",
)
EPISODES = 20
ENVIRONMENTS_TOGETHER = 2
FIRST_EVALUATION_SEED = 1_000_000

MUJOCO = {
    "normalize": True,
    "n_steps": 1024,
    "batch_size": 128,
    "cg_max_steps": 25,
    "cg_damping": 0.1,
    "n_critic_updates": 20,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "n_steps": 512,
        "batch_size": 512,
        "cg_damping": 1e-3,
        "gae_lambda": 0.98,
        "n_critic_updates": 20,
    },
    "Acrobot-v1": {"normalize": True, "n_steps": 1024},
    "Pendulum-v1": {"n_steps": 1024, "gamma": 0.9, "n_critic_updates": 15, "use_sde": True, "sde_sample_freq": 4},
    "MountainCar-v0": {"normalize": True, "n_steps": 1024, "n_critic_updates": 20},
    "MountainCarContinuous-v0": {"normalize": True, "steps": 50_000, "use_sde": True, "sde_sample_freq": 4},
    "LunarLander-v3": {
        "steps": 200_000,
        "n_steps": 512,
        "cg_damping": 0.01,
        "gae_lambda": 0.98,
        "n_critic_updates": 15,
    },
    "HalfCheetah-v5": {**MUJOCO, "steps": 1_000_000, "target_kl": 0.04},
    "Swimmer-v5": {**MUJOCO, "steps": 1_000_000, "gamma": 0.9999},
    **{
        f"{name}-v5": {**MUJOCO, "steps": 1_000_000}
        for name in ("Ant", "Hopper", "Walker2d", "Humanoid", "InvertedDoublePendulum", "Reacher")
    },
}


def measure(env_id: str, seed: int, steps: int | None) -> dict[str, Any]:
    """Train, and play deterministic episodes with the normaliser's statistics at the end."""
    settings = {"normalize": False, "steps": 100_000, **SETTINGS[env_id]}
    normalize, zoo_steps = settings.pop("normalize"), settings.pop("steps")
    steps = steps or zoo_steps
    envs: VecEnv = make_vec_env(env_id, n_envs=ENVIRONMENTS_TOGETHER, seed=seed)
    if normalize:
        envs = VecNormalize(envs, gamma=settings.get("gamma", 0.99))
    model = sb3_contrib.TRPO("MlpPolicy", envs, seed=seed, device="cpu", **settings)
    started = time.perf_counter()
    model.learn(steps)
    seconds = time.perf_counter() - started
    mean, std = evaluate_policy(model, evaluation_env(env_id, envs), EPISODES, deterministic=True)
    version = f"{sb3_contrib.__version__}, torch {torch.__version__}"
    return dict(zip(COLUMNS, (env_id, seed, steps, mean, std, round(seconds, 1), version, "zoo", None), strict=True))


def evaluation_env(env_id: str, trained_in: VecEnv) -> VecEnv:
    """Make one environment with training's observations and frozen statistics, and with unscaled rewards."""
    env: VecEnv = make_vec_env(env_id, n_envs=1, seed=FIRST_EVALUATION_SEED)
    if isinstance(trained_in, VecNormalize):
        env = VecNormalize(env, training=False, norm_reward=False)
        env.obs_rms = trained_in.obs_rms
    return env


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a row, and the heads to a file that is new."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """Measure, print and append."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env_id", choices=SETTINGS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="environment steps, by default the Zoo's, or 1M for MuJoCo")
    parser.add_argument("--out", type=Path, default=SCORES, help="CSV file to append to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    row = measure(arguments.env_id, arguments.seed, arguments.steps)
    append(arguments.out, row)
    print(*(f"{name} {value}" for name, value in row.items()), sep="\n")


if __name__ == "__main__":
    main()
