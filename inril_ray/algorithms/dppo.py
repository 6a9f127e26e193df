"""DPPO: policy gradients through the last denoising steps of a diffusion policy."""

from __future__ import annotations

from pydantic import PositiveFloat

from inril_ray.algorithms.base import UnitFloat
from inril_ray.algorithms.on_policy import OnPolicyAlgorithm, OnPolicyConfig
from inril_ray.config import config
from inril_ray.losses.policy_gradient import clip_ratio_schedule, denoising_discounts


@config
class DPPOConfig(OnPolicyConfig):
    """Settings of DPPO. Defaults are those of its Robomimic experiments."""

    clip_ratio_base: PositiveFloat = 0.001
    """Clip ratio of the noisiest fine-tuned step; it rises to ``clip_ratio`` at the last."""
    denoising_discount: UnitFloat = 0.99
    """Weight of an advantage shrinks by this for each step that the denoising is from its end."""


class DPPO(OnPolicyAlgorithm):
    """Each fine-tuned denoising step is an action of its own. Source: Ren et al. 2024.

    Differs from the reference code: advantages are cut at time limits, and one fine-tuned step works.
    """

    Config = DPPOConfig
    policies = ("diffusion_mlp", "diffusion_unet")
    config: DPPOConfig

    def step_weights(self, num_scored_steps: int) -> tuple[list[float], list[float]]:
        """Return denoising discounts and clip ratios."""
        cfg = self.config
        return (
            denoising_discounts(cfg.denoising_discount, num_scored_steps),
            clip_ratio_schedule(cfg.clip_ratio, cfg.clip_ratio_base, num_scored_steps),
        )
