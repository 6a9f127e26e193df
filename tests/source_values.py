"""What the sources of the presets use, by algorithm, task and policy. Where ours differ, docs/methods.md says why.

Iterations are those that train: of n in a configuration of DPPO's, every tenth is an evaluation, and the first is; a
critic warm-up that counts the first one is one shorter here. Rows of a replay are transitions divided by environments.
"""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]


def training(iterations: int) -> int:
    """Iterations of DPPO's that are not evaluations."""
    return iterations - -(-iterations // 10)


# -- DPPO (Ren et al. 2024), table 5 of its v0.7 configurations -------------------------------------------------------
AVERAGE = {"pretrain.ema_decay": 0.995, "pretrain.ema_every": 10, "pretrain.ema_start_epoch": 19}
NO_AVERAGE = {"pretrain.ema_decay": 0.0, "pretrain.ema_every": 1}
CLONING: Values = {
    "pretrain.num_epochs": 3000, "pretrain.batch_size": 256, "pretrain.lr": 1e-4, "pretrain.min_lr": 1e-5,
    "pretrain.warmup_epochs": 100, "pretrain.weight_decay": 1e-6,
}  # fmt: skip
GYM_CLONING: Values = {
    "pretrain.num_epochs": 200, "pretrain.batch_size": 128, "pretrain.lr": 1e-3, "pretrain.min_lr": 1e-4,
    "pretrain.warmup_epochs": 1, "pretrain.weight_decay": 1e-6,
}  # fmt: skip
CONSTANT_LR: Values = {"rl.actor_lr": 1e-4, "rl.actor_min_lr": None}
PPO: Values = {
    "rl.critic_lr": 1e-3, "rl.critic_min_lr": None, "rl.weight_decay": 0.0,
    "rl.max_grad_norm": None, "rl.gae_lambda": 0.95, "rl.value_coef": 0.5, "rl.target_kl": 1.0, "rl.clip_ratio": 0.01,
    "rl.critic_hidden_dim": 256, "rl.critic_num_hidden": 3, "rl.critic_activation": "mish", "rl.scale_rewards": True,
}  # fmt: skip
DPPO: Values = {
    **PPO, **AVERAGE, "actor.noise_limit": 3.0, "actor.min_sampling_std": 0.1, "actor.min_log_prob_std": 0.1,
    "actor.denoising_steps": 20, "actor.ddim_steps": None, "actor.finetuned_steps": 10, "actor.step_embedding_dim": 16,
}  # fmt: skip
ROBOMIMIC: Values = {
    **CLONING, "rl.discount": 0.999, "rl.critic_warmup_iterations": 1, "rl.num_epochs": 10, "rollout.reset_each": True,
    "rl.time_limits": "next_episode", "rollout.num_envs": 50, "interleave.il_batch_size": 256, "interleave.il_lr": 1e-4,
    "interleave.il_weight_decay": 1e-6,
}  # fmt: skip
ROBOMIMIC_UNET: Values = {**DPPO, **ROBOMIMIC, "rl.clip_ratio_base": 0.001, "rl.denoising_discount": 0.99}
ROBOMIMIC_DPPO: Values = {**ROBOMIMIC_UNET, **CONSTANT_LR}
LIFT: Values = {
    "num_iterations": training(81), "rollout.num_decisions": 300, "rl.minibatch_size": 7500,
    "actor.prediction_horizon": 4, "actor.action_horizon": 4,
}  # fmt: skip
MLP: Values = {
    "actor.hidden_dim": 512,
    "actor.num_hidden": 3,
    "actor.activation": "mish",
    "actor.obs_encoder_dims": None,
}
LARGE: Values = {**MLP, "actor.hidden_dim": 1024, "actor.step_embedding_dim": 32}
SINGLE: Values = {"actor.prediction_horizon": 1, "actor.action_horizon": 1, "rl.denoising_discount": 0.9}
UNET: Values = {
    "actor.group_norm_eps": 1e-5, "actor.num_groups": 8, "actor.kernel_size": 5, "actor.film": "deep",
    "actor.prediction_horizon": 4, "actor.action_horizon": 4,
}  # fmt: skip
SMALL_UNET: Values = {**ROBOMIMIC_UNET, **UNET, "actor.widths": (40, 80), "rl.minibatch_size": 7500}
LARGE_UNET: Values = {
    **ROBOMIMIC_UNET, **UNET, "actor.widths": (64, 128), "rl.minibatch_size": 10_000, "rl.actor_lr": 2e-5,
    "num_iterations": training(201), "rollout.num_decisions": 400,
}  # fmt: skip
GYM_DPPO: Values = {
    **DPPO, **CONSTANT_LR, **GYM_CLONING, **MLP, "actor.activation": "relu", "actor.prediction_horizon": 4,
    "actor.action_horizon": 4,
    "num_iterations": training(1000), "rollout.num_envs": 40, "rollout.num_decisions": 500, "rollout.reset_each": False,
    "rl.discount": 0.99, "rl.minibatch_size": 50_000, "rl.num_epochs": 5, "rl.clip_ratio_base": 0.01,
    "rl.critic_warmup_iterations": 0, "rl.denoising_discount": 0.99, "interleave.every": 10,
    "rl.time_limits": "terminal",
}  # fmt: skip
FURNITURE_DPPO: Values = {
    **DPPO, **CLONING, "pretrain.num_epochs": 8000, "num_iterations": training(1000), "rollout.num_envs": 1000,
    "rl.discount": 0.999, "rl.num_epochs": 5, "rl.critic_warmup_iterations": 0, "rl.critic_hidden_dim": 512,
    "rl.time_limits": "terminal",
    "rl.clip_ratio": 0.001, "rl.clip_ratio_base": 0.001, "rl.denoising_discount": 0.9, "rl.actor_lr": 1e-5,
    "rl.actor_min_lr": 1e-6, "rl.lr_warmup_iterations": 10, "rl.lr_decay_iterations": 10_000,
    "actor.min_sampling_std": 0.04, "actor.denoising_steps": 100, "actor.ddim_steps": 5, "actor.finetuned_steps": 5,
    "actor.ddim_noise": "recomputed", "actor.obs_limit": 5.0,
}  # fmt: skip
FURNITURE_UNET: Values = {
    **FURNITURE_DPPO, **UNET, "actor.group_norm_eps": 1e-4, "actor.widths": (64, 128, 256),
    "actor.prediction_horizon": 16, "actor.action_horizon": 8, "rl.minibatch_size": 40_000,
}  # fmt: skip
FURNITURE_MLP: Values = {
    **FURNITURE_DPPO, **LARGE, "actor.num_hidden": 7, "actor.layer_norm": True, "actor.obs_encoder_dims": (512, 64),
    "actor.prediction_horizon": 8, "actor.action_horizon": 8, "rl.minibatch_size": 8800,
}  # fmt: skip
ONE_LEG, LONG = {"rollout.num_decisions": 88}, {"rollout.num_decisions": 125}

# -- its baselines ----------------------------------------------------------------------------------------------------
WHOLE_CHAIN: Values = {
    "actor.denoising_steps": 20, "actor.finetuned_steps": 20, "actor.min_sampling_std": 0.1, "actor.noise_limit": 3.0,
    "rl.critic_lr": 1e-3, "rl.actor_min_lr": None, "rl.critic_hidden_dim": 256, "rl.critic_num_hidden": 3,
}  # fmt: skip
BASELINE: Values = {**WHOLE_CHAIN, "rl.batch_size": 1000, "rl.weight_decay": 0.0, "rl.time_limits": "bootstrap"}
ON_ROBOMIMIC: Values = {"rl.discount": 0.999, "rl.actor_lr": 1e-5, "num_iterations": training(300)}
ON_GYM: Values = {
    "rl.discount": 0.99, "rl.actor_lr": 1e-4, "num_iterations": training(1000), "rollout.num_envs": 40,
    "rollout.num_decisions": 500, "actor.activation": "relu",
}  # fmt: skip
CHUNKS: Values = {
    "rollout.num_envs": 50, "rollout.num_decisions": 300, "actor.prediction_horizon": 4, "actor.action_horizon": 4,
}  # fmt: skip
"""On Lift and Can."""
SCALED: Values = {**ON_GYM, "rl.reward_scale": 0.01}
IDQL: Values = {
    **BASELINE, "rl.expectile": 0.8, "rl.exploration_expectile": 0.7, "rl.replay_ratio": 128, "rl.polyak": 0.001,
    "rl.critic_warmup_iterations": 4, "interleave.every": 10,
}  # fmt: skip
DIPO: Values = {**BASELINE, "rl.polyak": 0.005, "rl.ascent_steps": 10, "rl.ascent_lr": 1e-4, "rl.ascent_clip": 0.1}
AWR: Values = {
    **BASELINE, "rl.replay_ratio": 64, "rl.critic_share": 0.25, "rl.td_lambda": 0.95, "rl.td_step": 0.95,
    "rl.temperature": 10.0, "rl.max_weight": 100.0,
}  # fmt: skip
RWR: Values = {
    "actor.denoising_steps": 20, "actor.finetuned_steps": 20, "rl.num_epochs": 16, "rl.batch_size": 1000,
    "rl.temperature": 10.0, "rl.max_weight": 100.0,
}  # fmt: skip
DQL: Values = {
    **BASELINE, "rl.replay_ratio": 16, "rl.polyak": 0.005, "rl.q_weight": 1.0, "rl.critic_warmup_iterations": 4,
}  # fmt: skip
QSM: Values = {
    **BASELINE, "rl.replay_ratio": 16, "rl.polyak": 0.005, "rl.slope": 10.0, "rl.critic_warmup_iterations": 4,
}  # fmt: skip
ONE_ENV: Values = {"rollout.num_envs": 1, "rl.batch_size": 256, "rl.discount": 0.99, "actor.prediction_horizon": 1}
STEPWISE: Values = {**ONE_ENV, "rollout.num_decisions": 1}
MILLION = 1_000_000
"""Transitions in a replay."""


def rows(transitions: int, num_envs: int) -> Values:
    """A replay of so many transitions."""
    return {"rl.buffer_size": transitions // num_envs}


SOFT: Values = {"rl.init_temperature": 1.0, "rl.entropy_share": 1.0, **rows(MILLION, 10)}
LARGE_SOFT: Values = {**SOFT, "actor.hidden_dims": (512, 512, 512), "rl.critic_num_hidden": 3}
SMALL_SOFT: Values = {**SOFT, "actor.hidden_dims": (256, 256), "rl.critic_num_hidden": 2, "rl.critic_hidden_dim": 256}
RLPD: Values = {**STEPWISE, "rl.critic_layer_norm": True, "rl.entropy_backup": True, "rl.num_target_critics": 2}
FAST: Values = {"rl.actor_lr": 3e-4, "rl.critic_lr": 3e-4, "rl.polyak": 0.005}
SLOW: Values = {"rl.actor_lr": 1e-4, "rl.critic_lr": 1e-4, "rl.polyak": 0.01}
CAL_QL: Values = {
    **ONE_ENV, "rl.critic_layer_norm": True, "rl.actor_lr": 1e-4, "rl.critic_lr": 3e-4, "rl.polyak": 0.005,
    "rl.conservatism": 5.0,
    "rl.entropy_backup": False, "rl.replay_ratio": 256,
}  # fmt: skip
IBRL: Values = {
    **STEPWISE, **SLOW, **NO_AVERAGE, "actor.init_std": 0.1, "actor.min_std": 0.1, "actor.max_std": 0.1,
    "rl.num_critics": 5, "rl.num_target_critics": 2, "rl.critic_layer_norm": True, "rl.choice": "soft",
}  # fmt: skip
IBRL_ROBOMIMIC: Values = {
    **IBRL, "actor.hidden_dim": 1024, "actor.num_hidden": 3, "actor.activation": "relu", "rl.critic_hidden_dim": 1024,
    "rl.critic_num_hidden": 3, "rl.beta": 10.0, "rl.critic_steps": 3, "rl.replay_ratio": 256 * 3 / 2,
    **rows(500_000, 10),
}  # fmt: skip
IBRL_GYM: Values = {
    **IBRL, "actor.hidden_dim": 256, "actor.num_hidden": 3, "actor.activation": "mish", "rl.critic_hidden_dim": 256,
    "rl.critic_num_hidden": 3, "rl.beta": 0.1, "rl.critic_steps": 5, "rl.replay_ratio": 256 * 5 / 2,
    **rows(MILLION, 10),
}  # fmt: skip
GAUSSIAN: Values = {
    **PPO, **NO_AVERAGE, "actor.init_std": 0.1, "actor.min_std": 0.01, "actor.max_std": 0.2, "actor.noise_limit": 3.0,
    "actor.num_hidden": 3,
}  # fmt: skip

# -- ResiP (Ankile et al. 2024) and IN-RIL, tables 8 and 11 to 13 -----------------------------------------------------
RESIP: Values = {
    "rollout.num_envs": 1024, "rollout.reset_each": True, "env.terminate_on_success": False, "rl.num_epochs": 50,
    "rl.minibatch_size": 2**31, "rl.clip_ratio": 0.2, "rl.value_coef": 1.0, "rl.target_kl": 0.1,
    "rl.max_grad_norm": 1.0,
    "rl.actor_lr": 3e-4, "rl.actor_min_lr": 0.0, "rl.lr_warmup_iterations": 5, "rl.critic_lr": 5e-3,
    "rl.critic_min_lr": 0.0, "rl.adam_eps": 1e-5, "rl.weight_decay": 1e-6, "rl.discount": 0.999, "rl.gae_lambda": 0.95,
    "rl.scale_rewards": True, "rl.reward_limit": 5.0, "rl.critic_warmup_iterations": 0,
    "rl.critic_hidden_dims": (256, 256), "actor.hidden_dims": (256, 256), "actor.scale": 0.1, "actor.log_std": -1.0,
    "actor.input_limit": 3.0, "pretrain.num_epochs": 5000, "pretrain.batches_per_epoch": 1000,
    "pretrain.batch_size": 256, "pretrain.lr": 1e-4, "pretrain.min_lr": 0.0, "pretrain.warmup_epochs": 10,
    "pretrain.weight_decay": 1e-6, **NO_AVERAGE, "interleave.il_steps": 100, "interleave.il_batch_size": 512,
    "interleave.il_lr": 1e-4, "interleave.il_adam_eps": 1e-5, "interleave.il_weight_decay": 1e-6,
}  # fmt: skip
RESIP_UNET: Values = {
    **RESIP, "actor.warm_start": True, "actor.base.prediction_horizon": 32, "actor.base.action_horizon": 8,
    "actor.base.denoising_steps": 100, "actor.base.ddim_steps": 4, "actor.base.ddim_noise": "predicted",
    "actor.base.widths": (256, 512, 1024), "actor.base.step_embedding_dim": 256, "actor.base.kernel_size": 5,
    "actor.base.num_groups": 8, "actor.base.group_norm_eps": 1e-5, "actor.base.film": "shallow",
}  # fmt: skip
RESIP_MLP: Values = {
    **RESIP, "actor.base.prediction_horizon": 8, "actor.base.hidden_dim": 1024, "actor.base.num_hidden": 11,
    "actor.base.activation": "relu",
}  # fmt: skip


def steps(horizon: int, every: int) -> Values:
    """One of ResiP's rollouts, of which a billion control steps are made, and IN-RIL's m."""
    return {
        "rollout.num_decisions": horizon,
        "num_iterations": 10**9 // (1024 * horizon),
        "interleave.every": every,
    }


SOURCES: dict[str, Values] = {
    # IN-RIL's tables 5 and 14 to 18: chunks on data of several people for Lift and Transport, else single actions.
    "dppo robomimic/lift": {**ROBOMIMIC_DPPO, **LIFT, **MLP, "interleave.every": 10, "demos": "mh"},
    "dppo robomimic/can": {
        **ROBOMIMIC_DPPO, **MLP, **SINGLE, "num_iterations": training(301), "rollout.num_envs": 40,
        "rollout.num_decisions": 300, "rl.minibatch_size": 6000, "interleave.every": 5,
    },
    "dppo robomimic/square": {
        **ROBOMIMIC_DPPO, **LARGE, **SINGLE, "actor.obs_encoder_dims": (512, 64), "num_iterations": training(301),
        "rollout.num_envs": 40, "rollout.num_decisions": 400, "rl.minibatch_size": 8000, "interleave.every": 30,
    },
    "dppo robomimic/transport": {
        **ROBOMIMIC_DPPO, **LARGE, "actor.prediction_horizon": 8, "actor.action_horizon": 8, "rl.num_epochs": 5,
        "num_iterations": training(201), "rollout.num_decisions": 400, "rl.minibatch_size": 10_000,
        "interleave.every": 10, "demos": "mh",
    },
    "dppo robomimic/lift diffusion_unet": {**SMALL_UNET, "num_iterations": training(81), "rollout.num_decisions": 300},
    "dppo robomimic/can diffusion_unet": {**SMALL_UNET, "num_iterations": training(151), "rollout.num_decisions": 300},
    "dppo robomimic/square diffusion_unet": LARGE_UNET,
    "dppo robomimic/transport diffusion_unet": {**LARGE_UNET, "actor.prediction_horizon": 16, "actor.action_horizon": 8,
                                                "rl.num_epochs": 5},
    "dppo gym/hopper": {**GYM_DPPO, "pretrain.num_epochs": 3000},
    "dppo gym/walker2d": {**GYM_DPPO, "interleave.every": 30},
    "dppo gym/halfcheetah": GYM_DPPO,
    "dppo furniture/one_leg_low": {**FURNITURE_UNET, **ONE_LEG, "rl.minibatch_size": 30_000},
    "dppo furniture/one_leg_med": {**FURNITURE_UNET, **ONE_LEG, "rl.minibatch_size": 30_000},
    **{
        f"dppo furniture/{task}": {**FURNITURE_UNET, **LONG}
        for task in ("lamp_low", "lamp_med", "round_table_low", "round_table_med")
    },
    "dppo furniture/one_leg_low diffusion_mlp": {**FURNITURE_MLP, **ONE_LEG, "rl.minibatch_size": 17_600},
    **{
        f"dppo furniture/{task} diffusion_mlp": {**FURNITURE_MLP, **LONG}
        for task in ("lamp_low", "lamp_med", "round_table_low", "round_table_med")
    },
    # IN-RIL's tables 5, 19 and 20.
    **{
        f"idql robomimic/{task}": {
            **IDQL, "rl.num_samples": 10, "rl.buffer_size": 5000, "rl.discount": 0.999, "rl.actor_lr": 1e-4,
            "num_iterations": training(iterations), "rollout.num_envs": num_envs, "interleave.every": every,
        }
        for task, iterations, num_envs, every in (
            ("lift", 120, 50, 7), ("can", 301, 40, 10), ("square", 301, 40, 10), ("transport", 201, 50, 10),
        )
    },
    **{
        f"idql gym/{task}": {**IDQL, **SCALED, "rl.num_samples": 20, "rl.buffer_size": 25_000}
        for task in ("hopper", "walker2d", "halfcheetah")
    },
    # DPPO's comparison.
    "dipo robomimic/lift": {**DIPO, **ON_ROBOMIMIC, **CHUNKS, **rows(MILLION, 50), "rl.replay_ratio": 16,
                            "rl.critic_warmup_iterations": 4},
    "dipo robomimic/can": {**DIPO, **ON_ROBOMIMIC, **CHUNKS, **rows(MILLION, 40), "rl.replay_ratio": 16,
                           "rl.critic_warmup_iterations": 1},
    "dipo robomimic/transport": {**DIPO, **ON_ROBOMIMIC, **rows(MILLION, 50), "rl.replay_ratio": 16,
                                 "rl.critic_warmup_iterations": 1, "num_iterations": training(201)},
    "dipo gym/hopper": {**DIPO, **SCALED, **rows(MILLION, 40), "rl.replay_ratio": 64, "rl.critic_warmup_iterations": 4},
    **{
        f"awr robomimic/{task}": {
            **AWR, **ON_ROBOMIMIC, **CHUNKS, "rl.buffer_size": 3000, "rl.critic_warmup_iterations": 1,
        }
        for task in ("lift", "can")
    },
    "awr gym/hopper": {**AWR, **SCALED, "rl.buffer_size": 5000, "rl.critic_warmup_iterations": 0},
    **{f"rwr robomimic/{task}": {**RWR, **ON_ROBOMIMIC, **CHUNKS, "rl.weight_decay": 1e-6} for task in ("lift", "can")},
    "rwr gym/hopper": {**RWR, **ON_GYM, "rl.weight_decay": 0.0},
    "dql robomimic/lift": {**DQL, **ON_ROBOMIMIC, **CHUNKS, **rows(MILLION, 50)},
    "dql robomimic/can": {**DQL, **ON_ROBOMIMIC, **CHUNKS, **rows(MILLION, 40)},
    "dql robomimic/transport": {**DQL, **rows(MILLION, 50), "rl.critic_warmup_iterations": 1},
    "dql gym/hopper": {**DQL, **SCALED, **rows(MILLION, 40)},
    **{f"qsm robomimic/{task}": {**QSM, **ON_ROBOMIMIC, **CHUNKS, "rl.buffer_size": 5000} for task in ("lift", "can")},
    "qsm gym/hopper": {**QSM, **SCALED, "rl.buffer_size": 25_000},
    "sac gym/hopper": {**SMALL_SOFT, **STEPWISE, **FAST, "rl.critic_lr": 1e-3, "rl.replay_ratio": 256,
                        "rl.critic_steps": 2},
    "rlpd robomimic/lift": {**LARGE_SOFT, **RLPD, **FAST, "rl.num_critics": 5, "rl.critic_steps": 5,
                            "rl.replay_ratio": 256 * 5},
    "rlpd robomimic/can": {**LARGE_SOFT, **RLPD, **SLOW, **rows(400_000, 10), "rl.num_critics": 5,
                           "rl.critic_steps": 3, "rl.replay_ratio": 256 * 3},
    "rlpd gym/halfcheetah": {**SMALL_SOFT, **RLPD, **FAST, "rl.num_critics": 10, "rl.critic_steps": 20,
                             "rl.replay_ratio": 256 * 20},
    "cal_ql robomimic/can": {**LARGE_SOFT, **CAL_QL, "rl.offline_updates": MILLION},
    "cal_ql gym/halfcheetah": {**SMALL_SOFT, **CAL_QL, "rl.offline_updates": 100_000},
    "ibrl robomimic/can": {**IBRL_ROBOMIMIC, "env.max_episode_steps": 250},
    "ibrl robomimic/square": IBRL_ROBOMIMIC,
    "ibrl gym/hopper": IBRL_GYM,
    **{
        f"ppo robomimic/{task}": {
            **ROBOMIMIC, **GAUSSIAN, "rollout.num_envs": 50, "rl.minibatch_size": 7500, "actor.hidden_dim": 512,
            "actor.prediction_horizon": 4,
        }
        for task in ("lift", "can")
    },
    "ppo robomimic/square": {**ROBOMIMIC, **GAUSSIAN, "rl.minibatch_size": 10_000, "actor.hidden_dim": 1024,
                             "actor.prediction_horizon": 4},
    "ppo robomimic/transport": {**ROBOMIMIC, **GAUSSIAN, "rl.minibatch_size": 10_000, "rl.num_epochs": 5,
                                "actor.hidden_dim": 1024, "actor.prediction_horizon": 8},
    # ResiP's sizes, with m of IN-RIL's table 8.
    **{
        f"residual_ppo furniture/{task}": {**RESIP_UNET, **steps(horizon, every)}
        for task, horizon, every in (
            ("one_leg_low", 700, 5), ("one_leg_med", 700, 5), ("lamp_low", 1000, 4), ("lamp_med", 1000, 10),
            ("round_table_low", 1000, 5), ("mug_rack", 400, 5), ("peg_in_hole", 200, 5),
        )
    },
    "residual_ppo furniture/one_leg_low residual_gaussian": {**RESIP_MLP, **steps(700, 5)},
}  # fmt: skip
"""``algorithm task [policy]`` to what its source uses, by dotted key."""
