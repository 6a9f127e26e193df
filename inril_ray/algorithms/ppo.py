"""PPO on action chunks."""

from __future__ import annotations

from inril_ray.algorithms.on_policy import OnPolicyAlgorithm, OnPolicyConfig


class PPO(OnPolicyAlgorithm):
    """Every scored step counts alike; meant for Gaussian policies, which have one. Source: Schulman et al. 2017."""

    Config = OnPolicyConfig
    policies = ("gaussian_mlp",)

    def step_weights(self, num_scored_steps: int) -> tuple[list[float], list[float]]:
        """Return equal weights and clip ratios."""
        return [1.0] * num_scored_steps, [self.config.clip_ratio] * num_scored_steps
