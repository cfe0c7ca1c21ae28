"""Names that other libraries have for settings, for errors that say the name used here."""

import difflib
from collections.abc import Collection

NAMES = {
    **dict.fromkeys(("env", "env_name"), "env_id"),
    **dict.fromkeys(("n_envs", "training_num", "num_training_envs"), "num_envs"),
    **dict.fromkeys(("n_steps", "num_steps", "step_per_collect", "train_batch_size"), "batch_size"),
    **dict.fromkeys(("total_timesteps", "n_timesteps", "timesteps", "num_env_steps"), "total_steps"),
    **dict.fromkeys(("gamma", "discount_factor"), "discount"),
    **dict.fromkeys(("lam", "lambda", "lambda_", "gae_lam"), "gae_lambda"),
    **dict.fromkeys(("target_kl", "delta", "kl_target", "desired_kl", "trust_region_radius"), "max_kl"),
    **dict.fromkeys(("cg_max_steps", "cg_iters", "cg_steps", "max_cg_iterations"), "cg_iterations"),
    **dict.fromkeys(("cg_damping", "damping_coeff", "hvp_reg_coeff"), "damping"),
    **dict.fromkeys(("line_search_shrinking_factor", "backtrack_coeff"), "backtrack_ratio"),
    **dict.fromkeys(("line_search_max_iter", "backtrack_iters"), "max_backtracks"),
    **dict.fromkeys(("n_critic_updates", "optim_critic_iters", "train_v_iters", "vf_iters"), "critic_epochs"),
    **dict.fromkeys(("learning_rate", "lr", "vf_lr", "critic_lr", "vf_stepsize"), "critic_learning_rate"),
    **dict.fromkeys(("ent_coef", "entropy_coeff", "entropy_coef"), "entropy_coefficient"),
    **dict.fromkeys(("n_epochs", "num_epochs", "repeat_per_collect", "update_epochs", "num_sgd_iter"), "policy_epochs"),
    **dict.fromkeys(("minibatch_size", "sgd_minibatch_size"), "policy_batch_size"),
    **dict.fromkeys(("clip_coef", "eps_clip", "clip_param", "clip_ratio"), "clip_range"),
    **dict.fromkeys(("net_arch", "fcnet_hiddens", "hidden_size", "hidden_units"), "hidden_sizes"),
    **dict.fromkeys(("activation_fn", "nonlinearity"), "activation"),
    **dict.fromkeys(("normalize_obs", "obs_norm", "norm_obs", "rms_obs"), "normalize_observations"),
    **dict.fromkeys(("normalize_reward", "rew_norm", "reward_normalization"), "value_scaling"),
    "log_std_init": "initial_log_std",
    "n_eval_episodes": "periodic_eval_episodes",
    "eval_freq": "eval_interval",
    **dict.fromkeys(("save_freq", "save_interval", "checkpoint_freq"), "checkpoint_steps"),
    "algorithm": "algo",
    "frame_stack": "history",
}
"""Of stable-baselines3, its Zoo, Tianshou, CleanRL, RLlib and Spinning Up: name there -> name here."""

OPTIONS = {
    **dict.fromkeys(("log_dir", "logdir", "log_folder", "output_dir", "save_dir", "save_path"), "out"),
    **dict.fromkeys(("num_rollout_workers", "num_env_runners"), "workers"),
}
"""The same for options that are no settings."""

ADVICE = {
    "deterministic": "evaluate takes the most likely action, unless --stochastic is given",
    **dict.fromkeys(("render", "capture_video", "save_video", "record_video"), "trpo-tf record draws a run's episodes"),
}
"""Option of another library -> how the same is done here."""

ENVIRONMENT = ("env", "env_id", "env_name", "environment")
"""Options by which other command lines take the environment."""


def known_as(name: str, names: Collection[str]) -> str:
    """Return which of the settings `names` is meant by an unknown name, as a clause of an error; empty if none is."""
    if name in NAMES:
        return f"here it is {NAMES[name]}"
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return f"did you mean {close[0]}?" if close else ""
