"""The one table of metric names. A metric that is not in it can't be logged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

METRICS: dict[str, str] = {
    "iteration": "iterations finished: one rollout and its updates",
    "env_steps": "control steps executed in training environments",
    "rl_iterations": "iterations that updated the policy by reinforcement",
    "rl_updates": "gradient steps of reinforcement, those at a learning rate that begins or ends at 0 included",
    "il_iterations": "imitation iterations",
    "il_updates": "gradient steps of imitation",
    "score": "what runs are compared by: the success rate or, where the task has no success, the mean return of "
    "evaluation episodes on the task's scale (0: random policy, 1: expert; D4RL)",
    "score_low": "lower end of its 95 % interval: Wilson's of a success rate, Student's t of a mean return",
    "score_high": "upper end of its 95 % interval",
    "untrained_score": "IDQL, IBRL: score of the cloned policy with a say of critics that have learned nothing; the "
    "base policy acts alone",
    "untrained_score_low": "lower end of its 95 % interval",
    "untrained_score_high": "upper end of its 95 % interval",
    "success_rate": "share of evaluation episodes that are a success by the task's rule (`env.success`), the one of "
    "the three below that is not among the metrics",
    "success_rate_low": "lower end of its 95 % Wilson interval",
    "success_rate_high": "upper end of its 95 % Wilson interval",
    "success_rate_reached": "share of evaluation episodes that were solved after any control step",
    "success_rate_held": "share of evaluation episodes that were solved throughout one whole executed chunk (DPPO), or "
    "when they ended",
    "success_rate_final": "share of evaluation episodes that were solved after their last control step",
    "eval_episodes": "episodes behind the score",
    "eval_return": "mean return of evaluation episodes (tasks with success: reward 1 for each successful control step)",
    "train_success_rate": "share of training episodes of this iteration that succeeded by the task's rule, with "
    "exploration noise",
    "train_return": "mean return of this iteration's training episodes",
    "train_episodes": "training episodes that ended in this iteration",
    "rho": "-cos(g_IL, g_RL) of the expected gradients, corrected for noise; positive is opposing",
    "rho_se": "standard error of `rho` by the choice of minibatches, from three pairs on",
    "rho_ema": "`rho` from moving averages of inner product and squared norms over iterations",
    "rho_ema_se": "standard error of `rho_ema` by the choice of minibatches",
    "rho_advantage": "IDQL: `rho` of imitating experience weighted by its advantage, instead of all alike",
    "grad_norm_advantage": "IDQL: root mean square norm of that gradient",
    "grad_cosine": "mean cosine of the two gradients over minibatch pairs",
    "conflict_rate": "share of minibatch pairs whose gradients oppose each other",
    "grad_norm_rl": "root mean square norm of the reinforcement gradient",
    "grad_norm_il": "root mean square norm of the imitation gradient",
    "grad_inner": "inner product of the two mean gradients",
    "noise_scale_rl": "samples at which the noise of a reinforcement gradient equals its norm (moving average)",
    "noise_scale_il": "samples at which the noise of an imitation gradient equals its norm (moving average)",
    "interleave_every": "m: reinforcement iterations between imitation iterations, from the next iteration on",
    "interleave_target": "the m that the adaptive rule asked for last, before rounding and limits",
    "delta_il_rl": "what all imitation steps so far took off the reinforcement loss, to first order, less their noise",
    "beta_il_rl": "`delta_il_rl` as a share of what all steps so far took off the reinforcement loss, to first order",
    "il_share": "1 / (1 + m): imitation's share of the iterations so far; imitation is efficient where `beta_il_rl` "
    "exceeds it",
    "double_descent": "1 where the smoothed imitation loss on held-out demonstrations has risen by over 2 % and then "
    "fallen below its start",
    "separation_weight_rl": "mean weight of g_RL in the combined gradient of imitation steps",
    "separation_weight_il": "mean weight of g_IL in the combined gradient of imitation steps",
    "inner_after_rl": "mean inner product of the combined gradient with g_RL; below 0 harms reinforcement",
    "inner_after_il": "mean inner product of the combined gradient with g_IL",
    "stalled_steps": "steps whose gradients cancelled exactly, so that nothing was stepped",
    "step_harm_rl": "share of measured imitation steps whose parameter change opposed -g_RL (the optimiser's doing)",
    "step_harm_il": "share of measured imitation steps whose parameter change opposed -g_IL",
    "il_probe_loss": "imitation loss on held-out demonstrations, fine-tuned steps, at the end of the iteration",
    "il_probe_loss_all": "the same over all denoising steps",
    "il_probe_loss_before": "`il_probe_loss` before this iteration's imitation",
    "il_probe_loss_all_before": "`il_probe_loss_all` before this iteration's imitation",
    "rl_surrogate_before": "PPO loss on a fixed minibatch before this iteration's imitation",
    "rl_surrogate_after": "the same after it",
    "kl_base": "divergence of the policy from the cloned one: mean log-ratio of chunks that it samples on observations "
    "of held-out demonstrations, nats by scored step, executed action and dimension",
    "base_change": "residual policies: mean change of the base's planned actions by this iteration's imitation, on "
    "4096 observations of the rollout, same noise, normalised units",
    "correction_il_loss": "residual policies, `naive`: mean squared error of the correction on demonstrations",
    "il_loss": "mean imitation loss of this iteration's imitation steps",
    "bc_loss": "mean imitation loss that regularises reinforcement",
    "bc_weight": "its weight in this iteration",
    "policy_loss": "mean loss of the actor: clipped surrogate, weighted imitation, or minus the critics' value",
    "value_loss": "mean critic loss, summed over the members of an ensemble",
    "expectile_loss": "mean loss of IDQL's state value",
    "q_target": "mean target of the critics",
    "q_policy": "mean value of the policy's own actions",
    "q_spread": "mean standard deviation between the critics of an ensemble; 0 means that they are copies",
    "q_slope": "mean norm of the critics' gradient by the chunk",
    "conservative_gap": "Cal-QL's soft maximum over actions minus the value of the data, summed over critics",
    "entropy": "mean entropy of the policy's squashed chunks, nats",
    "imitation_weight": "mean weight of the replay's actions in weighted regression",
    "replay_size": "valid transitions in the replay",
    "finished_decisions": "decisions of episodes that this rollout finished",
    "approx_kl": "mean approximate KL divergence of the minibatches from the policy that acted",
    "clip_fraction": "share of samples whose ratio was clipped",
    "explained_variance": "of returns by the critic, before the updates",
    "early_stop": "1 where the KL target ended this iteration's updates",
    "dropped_samples": "decisions dropped because they were not finite",
    "skipped_updates": "gradient steps skipped because a gradient was not finite",
    "dropped_objectives": "steps of both objectives in which one gradient was not finite and only the other was used",
    "nan_resets": "environments reset by the NaN guard",
    "policy_lag": "learner updates between the weights that acted and those that learned",
    "worker_restarts": "rollout workers replaced so far",
    "queue_age_s": "seconds since the oldest fragment was complete when the learner took it, by the nodes' clocks",
    "learner_idle_share": "share of the time since the last learning in which the learner did not learn: rollouts, "
    "evaluation, checkpoints",
    "env_steps_per_s": "control steps per second of wall time, everything included",
    "rollout_s": "seconds waiting for rollouts",
    "simulation_s": "seconds in the simulators (slowest worker)",
    "inference_s": "seconds in the policy (slowest worker)",
    "rl_s": "seconds in reinforcement updates",
    "il_s": "seconds in imitation updates",
    "diagnostics_s": "seconds measuring how the gradients relate and the imitation probe",
    "eval_s": "seconds in evaluation",
    "checkpoint_s": "seconds writing the checkpoint before this iteration",
    "obs_out_of_range": "share of observed values outside the range of the demonstrations",
}
"""Name to meaning and unit: the metric glossary."""

GROUPS: dict[str, tuple[str, ...]] = {
    "eval": (
        "score", "score_low", "score_high", "success_rate", "success_rate_low", "success_rate_high",
        "success_rate_reached", "success_rate_held", "success_rate_final", "untrained_score",
        "untrained_score_low", "untrained_score_high", "eval_episodes", "eval_return",
    ),
    "train": (
        "iteration", "env_steps", "rl_iterations", "rl_updates", "il_iterations", "il_updates", "train_success_rate",
        "train_return", "train_episodes", "finished_decisions", "interleave_every", "interleave_target", "il_loss",
        "il_probe_loss", "il_probe_loss_all", "il_probe_loss_before", "il_probe_loss_all_before", "correction_il_loss",
        "double_descent", "bc_loss", "bc_weight", "policy_loss", "rl_surrogate_before", "rl_surrogate_after",
        "value_loss", "expectile_loss", "explained_variance", "q_target", "q_policy", "q_spread", "q_slope",
        "conservative_gap", "entropy", "imitation_weight", "replay_size", "approx_kl", "clip_fraction", "early_stop",
        "kl_base", "base_change", "policy_lag", "obs_out_of_range", "dropped_samples", "nan_resets", "worker_restarts",
    ),
    "grad": (
        "rho", "rho_se", "rho_ema", "rho_ema_se", "rho_advantage", "grad_norm_advantage", "grad_cosine",
        "conflict_rate", "grad_norm_rl", "grad_norm_il", "grad_inner", "noise_scale_rl", "noise_scale_il",
        "delta_il_rl", "beta_il_rl", "il_share", "separation_weight_rl", "separation_weight_il",
        "inner_after_rl", "inner_after_il", "stalled_steps", "step_harm_rl", "step_harm_il", "skipped_updates",
        "dropped_objectives",
    ),
    "time": (
        "env_steps_per_s", "learner_idle_share", "queue_age_s", "rollout_s", "simulation_s", "inference_s", "rl_s",
        "il_s", "diagnostics_s", "eval_s", "checkpoint_s",
    ),
}  # fmt: skip
"""Group to its metrics: what TensorBoard, MLflow and W&B call ``eval/score`` is ``score`` everywhere else."""
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}

Ended = Literal["finished", "stopped", "failed"]
"""How a run ended: with its summary, by SIGTERM or Ctrl-C, or by an error."""


class Tracker(Protocol):
    """Writes metrics somewhere. Knows nothing about training."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Write metrics measured after ``step`` environment steps."""
        ...

    def close(self, ended: Ended = "finished") -> None:
        """Write what is left, and how the run ended."""
        ...


class MeanMetrics:
    """Accumulates scalars on their device and brings them to the host once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Take in one value for each name."""
        for name, value in values.items():
            value = value.detach() if isinstance(value, torch.Tensor) else value
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """Return the mean of everything added."""
        device = {name: total for name, total in self._sums.items() if isinstance(total, torch.Tensor)}
        # In double precision, in which every single one is exact.
        fetched = torch.stack([total.double() for total in device.values()]).tolist() if device else []
        totals = {**self._sums, **dict(zip(device, fetched, strict=True))}
        return {name: float(totals[name]) / count for name, count in self._counts.items()}


def checked(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the finite metrics as floats.

    Raises:
        KeyError: a name is not in the table.
    """
    unknown = set(metrics) - set(METRICS)
    if unknown:
        raise KeyError(f"Metrics {sorted(unknown)} are not in the table of inril_ray.metrics.")
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def grouped(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return metrics under the names that they have in dashboards, such as ``eval/score``; see :data:`GROUPS`."""
    return {f"{_GROUP_OF[name]}/{name}": value for name, value in metrics.items()}
