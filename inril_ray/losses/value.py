"""Losses of value functions."""

from __future__ import annotations

from torch import Tensor


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Return half the mean squared error of values [N] against returns [N].

    Raises:
        ValueError: shapes differ (broadcasting [N, 1] against [N] would fit the mean and look like learning).
    """
    if values.shape != returns.shape:
        raise ValueError(f"shapes differ: {tuple(values.shape)} and {tuple(returns.shape)}.")
    return 0.5 * (values - returns).square().mean()


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """Return 1 - Var[returns - values] / Var[returns]; 1 is perfect, 0 is as good as the mean."""
    variance = returns.var(unbiased=False)
    return 1.0 - (returns - values).var(unbiased=False) / variance.clamp_min(1e-12)
