"""Losses of value functions."""

from __future__ import annotations

import torch
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


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """Return the mean of |expectile - 1(difference < 0)| difference^2 for differences [N] of target and value.

    Source: Kostrikov et al. 2022 (IQL), eq. 5.
    """
    weight = torch.where(difference < 0, 1.0 - expectile, expectile)
    return (weight * difference.square()).mean()


def td_target(rewards: Tensor, terminated: Tensor, following: Tensor, discount: float) -> Tensor:
    """Return r + discount (1 - terminated) V' for rewards, flags and values of the next observation, all [N]."""
    return rewards + discount * (1.0 - terminated) * following


def ensemble_loss(values: Tensor, targets: Tensor) -> Tensor:
    """Return the sum over members of the mean squared error of values [E, N] against targets [N].

    Raises:
        ValueError: shapes differ.
    """
    if values.shape[1:] != targets.shape:
        raise ValueError(f"shapes differ: {tuple(values.shape)} and {tuple(targets.shape)}.")
    return (values - targets).square().mean(dim=1).sum()
