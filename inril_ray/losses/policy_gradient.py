"""Clipped policy-gradient losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0


def clip_ratio_schedule(clip_ratio: float, clip_ratio_base: float, num_steps: int) -> list[float]:
    """Clip ratios of the fine-tuned denoising steps, noisiest first: from ``clip_ratio_base`` up to ``clip_ratio``.

    A single step takes ``clip_ratio`` (the reference code divides by zero there).

    Source: Ren et al. 2024 (DPPO), appendix; rate 3.
    """
    if num_steps == 1:
        return [clip_ratio]
    rise = [(math.exp(3.0 * k / (num_steps - 1)) - 1) / (math.exp(3.0) - 1) for k in range(num_steps)]
    return [clip_ratio_base + (clip_ratio - clip_ratio_base) * r for r in rise]


def denoising_discounts(discount: float, num_steps: int) -> list[float]:
    """Weights of the fine-tuned denoising steps, noisiest first: the last step has weight 1.

    Source: Ren et al. 2024 (DPPO), eq. 4.3 and its implementation.
    """
    return [discount ** (num_steps - 1 - k) for k in range(num_steps)]


def clipped_surrogate(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_ratio: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return PPO's loss, an estimate of the KL divergence, and the fraction of samples that were clipped.

    Args:
        log_prob: [N] under the current policy.
        old_log_prob: [N] under the policy that acted.
        advantage: [N].
        clip_ratio: [N] or a number.

    Returns:
        loss, approximate KL (Schulman's k3, no gradient), clip fraction (no gradient).

    Raises:
        ValueError: shapes differ.

    Source: Schulman et al. 2017, eq. 7; the KL estimate from Schulman 2020.
    """
    if not log_prob.shape == old_log_prob.shape == advantage.shape:
        raise ValueError(f"shapes differ: {log_prob.shape}, {old_log_prob.shape}, {advantage.shape}.")
    log_ratio = (log_prob - old_log_prob).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    clipped = torch.maximum(torch.minimum(ratio, 1.0 + torch.as_tensor(clip_ratio)), 1.0 - torch.as_tensor(clip_ratio))
    loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
    with torch.no_grad():
        kl = (ratio - 1.0 - log_ratio).mean()
        fraction = ((ratio - 1.0).abs() > clip_ratio).float().mean()
    return loss, kl, fraction


def normalized(advantage: Tensor) -> Tensor:
    """Shift and scale advantages [N] to mean 0 and standard deviation 1."""
    return (advantage - advantage.mean()) / (advantage.std() + 1e-8)


def exponential_weights(advantage: Tensor, temperature: float, limit: float) -> Tensor:
    """Return exp(temperature x normalised advantage) of advantages [N], at most ``limit``.

    Source: Peng et al. 2019 (AWR), algorithm 1.
    """
    # Clamped before the exponential, which would overflow.
    return (temperature * normalized(advantage)).clamp_max(math.log(limit)).exp()
