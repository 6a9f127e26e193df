"""What is measured beside learning: it changes no weights and no random stream of learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from inril_ray.demos.store import DemoStore
from inril_ray.gradient_separation.base import SeparationReport, gramian_of
from inril_ray.policies.base import Policy
from inril_ray.policies.residual import ResidualPolicy
from inril_ray.pretrain import imitation_inputs
from inril_ray.types import FloatArray, Rollout

PROBE_SIZE = 4096
"""Observations on which the change of a base is measured."""
PROBE_DECISIONS = 256
"""Decisions from which the divergence from the cloned policy is estimated."""


class Probe:
    """What policies are measured on: always the same held-out demonstrations and the same noise.

    Args:
        demos: demonstrations.
        device: where the policy lives.
    """

    def __init__(self, demos: DemoStore, device: torch.device) -> None:
        self._inputs = imitation_inputs(demos.probe(), torch.Generator().manual_seed(0), device)
        self._device = device

    @torch.no_grad()
    def losses(self, policy: Policy) -> dict[str, float]:
        """Return the imitation loss over the fine-tuned and over all denoising steps."""
        return {
            "il_probe_loss": float(policy.il_loss(*self._inputs, "finetuned")),
            "il_probe_loss_all": float(policy.il_loss(*self._inputs, "all")),
        }

    @torch.no_grad()
    def divergence(self, policy: Policy, cloned: Policy) -> float:
        """Estimate the divergence of a policy from the cloned one, in nats a scored step."""
        obs = self._inputs[0][:PROBE_DECISIONS]
        noise = torch.randn(len(obs), *policy.noise_shape, generator=torch.Generator().manual_seed(0))
        chain = policy.act(obs, noise.to(self._device), deterministic=False).chain
        total = 0.0
        for i in range(policy.num_scored_steps):
            step = torch.full((len(obs),), i, device=self._device)
            scored = (obs, chain[:, i], chain[:, i + 1], step)
            total += float((policy.log_prob(*scored) - cloned.log_prob(*scored)).mean())
        return total / policy.num_scored_steps


def base_plans(policy: ResidualPolicy, obs: FloatArray, seed: int) -> Callable[[], FloatArray]:
    """Return what tells the actions that a residual policy's base would execute, always with the same noise.

    Args:
        policy: looked at whenever the function is called.
        obs: [N, O], with the base's action behind, which is left out.
        seed: of the noise.
    """
    base = policy.base
    seen = obs[:, : -policy.noise_shape[-1]]
    noise = torch.randn(len(obs), *base.noise_shape, generator=torch.Generator().manual_seed(seed)).numpy()
    former = np.zeros((len(obs), *policy.plan_shapes["chunk_shape"]), np.float32)
    return lambda: policy.plan(seen, noise, former)[:, : base.action_horizon]


def gradient_pair(
    rl_loss: Tensor, il_loss: Tensor, parameters: Sequence[nn.Parameter]
) -> tuple[list[nn.Parameter], list[Tensor], list[Tensor]]:
    """Return the parameters that both losses reach and both gradients over them, keeping the graphs."""
    rl = torch.autograd.grad(rl_loss, parameters, retain_graph=True, allow_unused=True)
    il = torch.autograd.grad(il_loss, parameters, retain_graph=True, allow_unused=True)
    rows = zip(parameters, rl, il, strict=True)
    shared = [(p, g, h) for p, g, h in rows if g is not None and h is not None]
    return [p for p, _, _ in shared], [g for _, g, _ in shared], [h for _, _, h in shared]


def rollout_metrics(rollout: Rollout, version: int, policy: Policy) -> dict[str, float]:
    """Return what the log shall know of a rollout that weights of a version learn from."""
    normalizer = policy.normalizer
    low, high = normalizer.obs_low.cpu().numpy(), normalizer.obs_high.cpu().numpy()
    seen = rollout.obs[..., : len(low)]  # a residual policy sees the base's action behind it
    metrics = {
        "policy_lag": float(version - rollout.policy_version),
        "nan_resets": float(rollout.nan_resets),
        "obs_out_of_range": float(((seen < low) | (seen > high)).mean()),
        "train_episodes": float(len(rollout.episodes.success)),
        **{f"{name}_s": seconds for name, seconds in rollout.timings_s.items()},
    }
    if len(rollout.episodes.success):
        metrics["train_success_rate"] = float(rollout.episodes.success.mean())
        metrics["train_return"] = float(rollout.episodes.returns.mean())
    return metrics


def separation_metrics(report: SeparationReport) -> dict[str, float]:
    """Return what the log shall know of one separated step."""
    inner = report.inner_after if not report.dropped else (0.0, 0.0)
    return {
        "separation_weight_rl": report.weights[0],
        "separation_weight_il": report.weights[1],
        "inner_after_rl": inner[0],
        "inner_after_il": inner[1],
    }


def step_harm(change: list[Tensor], rl: list[Tensor], il: list[Tensor]) -> dict[str, float]:
    """Tell whether a parameter change opposed a descent direction: Adam may, though its input does not."""
    return {
        "step_harm_rl": float(gramian_of(list(zip(change, rl, strict=True))).inner > 0),
        "step_harm_il": float(gramian_of(list(zip(change, il, strict=True))).inner > 0),
    }
