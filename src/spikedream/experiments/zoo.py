"""Settings of RL Baselines3 Zoo (Raffin 2020, github.com/DLR-RM/rl-baselines3-zoo) for the environments that studies use: algorithm
to environment to fields of `baselines.StableBaselines3`.

From `hyperparams/ppo.yml` at commit 208b6fdf, `dqn.yml` at ce95481b and `sac.yml` at c94924e5; `schedule` is its `n_timesteps` and
`environments` its `n_envs`. The Zoo has no SAC for discrete actions, and no DQN for continuous ones.
"""

from typing import Any

RL_ZOO: dict[str, dict[str, dict[str, Any]]] = {
    "PPO": {
        "CartPole-v1": {
            "schedule": 100_000,
            "environments": 8,
            "settings": {
                "n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0,
                "learning_rate": "lin_0.001", "clip_range": "lin_0.2",
            },
        },
        "Pendulum-v1": {
            "schedule": 100_000,
            "environments": 4,
            "settings": {
                "n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0, "learning_rate": 1e-3,
                "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4,
            },
        },
        "MountainCarContinuous-v0": {
            "schedule": 20_000,
            "normalize": True,
            "settings": {
                "n_steps": 8, "batch_size": 256, "gamma": 0.9999, "learning_rate": 7.77e-5, "ent_coef": 0.00429, "clip_range": 0.1,
                "n_epochs": 10, "gae_lambda": 0.9, "max_grad_norm": 5, "vf_coef": 0.19, "use_sde": True,
                "policy_kwargs": {"log_std_init": -3.29, "ortho_init": False},
            },
        },
        "Acrobot-v1": {
            "schedule": 1_000_000,
            "environments": 16,
            "normalize": True,
            "settings": {"n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0},
        },
    },
    "DQN": {
        "CartPole-v1": {
            "schedule": 50_000,
            "settings": {
                "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1000, "gamma": 0.99,
                "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128, "exploration_fraction": 0.16,
                "exploration_final_eps": 0.04, "policy_kwargs": {"net_arch": [256, 256]},
            },
        },
        "Acrobot-v1": {
            "schedule": 100_000,
            "settings": {
                "learning_rate": 6.3e-4, "batch_size": 128, "buffer_size": 50_000, "learning_starts": 0, "gamma": 0.99,
                "target_update_interval": 250, "train_freq": 4, "gradient_steps": -1, "exploration_fraction": 0.12,
                "exploration_final_eps": 0.1, "policy_kwargs": {"net_arch": [256, 256]},
            },
        },
    },
    "SAC": {
        "Pendulum-v1": {"schedule": 20_000, "settings": {"learning_rate": 1e-3}},
        "MountainCarContinuous-v0": {
            "schedule": 50_000,
            "settings": {
                "learning_rate": 3e-4, "buffer_size": 50_000, "batch_size": 512, "ent_coef": 0.1, "train_freq": 32,
                "gradient_steps": 32, "gamma": 0.9999, "tau": 0.01, "learning_starts": 0, "use_sde": True,
                "policy_kwargs": {"log_std_init": -3.67, "net_arch": [64, 64]},
            },
        },
    },
}  # fmt: skip
