"""Imitation losses."""

from __future__ import annotations

import math

from torch import Tensor


def noise_prediction_loss(predicted: Tensor, noise: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean squared error of predicted noise, over batch, horizon and action dimensions.

    Args:
        predicted: [N, H, A].
        noise: [N, H, A].
        weight: [N] of each row; equal by default.

    Source: Ho et al. 2020, eq. 14; IN-RIL section 3.
    """
    if predicted.shape != noise.shape:
        raise ValueError(f"shapes differ: {tuple(predicted.shape)} and {tuple(noise.shape)}.")
    error = (predicted - noise).square()
    return error.mean() if weight is None else (weight * error.mean(dim=(1, 2))).mean()


def gaussian_log_prob(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the elementwise log-density of independent normal distributions."""
    return -0.5 * ((value - mean) / std).square() - std.log() - 0.5 * math.log(2.0 * math.pi)
