"""Noise schedule of diffusion policies and the coefficients of both samplers, DDPM and DDIM."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

MIN_VARIANCE = 1e-20
EVAL_MIN_STD = 1e-3
DDIMNoise = Literal["recomputed", "predicted"]
"""The noise that a DDIM step leaves in a chunk. ``recomputed``: what the clipped x0 makes of the chunk before the step
(DPPO). ``predicted``: what the network said (ResiP; the default of diffusers). They differ where x0 is clipped."""


def cosine_betas(num_steps: int, offset: float = 0.008) -> Tensor:
    """Return the noise variances β [K] of the cosine schedule, float64.

    Source: Nichol and Dhariwal 2021, eq. 17; equals diffusers' ``squaredcos_cap_v2``.
    """

    def level(i: int) -> float:
        return math.cos((i / num_steps + offset) / (1 + offset) * math.pi / 2) ** 2

    betas = [min(1 - level(i + 1) / level(i), 0.999) for i in range(num_steps)]
    return torch.tensor(betas, dtype=torch.float64)


class DenoisingSchedule(nn.Module):
    """Coefficients of the noising process at K levels, and of the n steps that sampling executes.

    A step has a rank j: 0 is the last one, n - 1 the first, and ``levels[j]`` is the level that it starts from. All
    samplers are of one form: x' = clean_coef[j] clip(x0) + chunk_coef[j] y + std[j] noise, where y is the chunk before
    the step, or the predicted noise with DDIM of that name.

    DDPM executes all levels, with the posterior of the chain; its variance is floored at 1e-20. In evaluation the
    deviation is at least 1e-3, and 0 in the last step.

    DDIM executes n levels, multiples of floor(K / n) ("leading"). With ᾱ at the step's level, ᾱ' at the next one (1
    after the last), x0 clipped and ε either the predicted noise or (x - sqrt(ᾱ) x0) / sqrt(1 - ᾱ), recomputed:
    σ = η sqrt((1 - ᾱ') / (1 - ᾱ) (1 - ᾱ / ᾱ')), at least 1e-10, and x' = sqrt(ᾱ') x0 + sqrt(1 - ᾱ' - σ²) ε + σ noise.
    In training η is 1; in evaluation it is 0 and no noise is added.

    Args:
        num_steps: K.
        ddim_steps: n; None for DDPM with n = K.
        ddim_noise: ε of DDIM; DDPM has none.

    Source: Ho et al. 2020, eqs. 6 and 7; Song et al. 2021, eqs. 12 and 16; floors, modes and recomputed noise of Ren et
    al. 2024 (DPPO).
    """

    levels: Tensor
    """[n] level of each executed step, by rank."""
    sqrt_alpha_bar: Tensor
    """[K]"""
    sqrt_one_minus: Tensor
    """[K]"""
    inverse_sqrt: Tensor
    """[K]"""
    noise_factor: Tensor
    """[K]"""
    clean_coef: Tensor
    """[n], training."""
    chunk_coef: Tensor
    """[n], training."""
    std: Tensor
    """[n], training, before the floors of the policy."""
    eval_clean_coef: Tensor
    """[n]"""
    eval_chunk_coef: Tensor
    """[n]"""
    eval_std: Tensor
    """[n]"""

    def __init__(self, num_steps: int, ddim_steps: int | None = None, ddim_noise: DDIMNoise = "recomputed") -> None:
        super().__init__()
        self.keeps_predicted = ddim_steps is not None and ddim_noise == "predicted"
        beta = cosine_betas(num_steps)
        alpha_bar = torch.cumprod(1 - beta, 0)
        values = {
            "sqrt_alpha_bar": alpha_bar.sqrt(),
            "sqrt_one_minus": (1 - alpha_bar).sqrt(),
            "inverse_sqrt": alpha_bar.rsqrt(),
            "noise_factor": (1 / alpha_bar - 1).sqrt(),
        }
        if ddim_steps is None:
            levels = torch.arange(num_steps)
            values |= _ddpm_coefficients(beta, alpha_bar)
        else:
            levels = torch.arange(ddim_steps) * (num_steps // ddim_steps)
            values |= _ddim_coefficients(alpha_bar[levels], ddim_noise)
        self.register_buffer("levels", levels, persistent=False)
        for name, value in values.items():
            self.register_buffer(name, value.float(), persistent=False)

    def add_noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return noisy chunks [N, H, A] at levels t [N]."""
        return at(self.sqrt_alpha_bar, t) * clean + at(self.sqrt_one_minus, t) * noise

    def posterior_mean(
        self, chunk: Tensor, predicted_noise: Tensor, j: Tensor, clip: float, *, deterministic: bool = False
    ) -> Tensor:
        """Return the mean [N, H, A] of what steps of ranks j [N] lead to.

        Args:
            chunk: [N, H, A] before the step.
            predicted_noise: [N, H, A] in it.
            j: [N] rank.
            clip: bound of the predicted clean chunk.
            deterministic: evaluation mode.
        """
        t = self.levels[j]
        clean = at(self.inverse_sqrt, t) * chunk - at(self.noise_factor, t) * predicted_noise
        clean_coef = self.eval_clean_coef if deterministic else self.clean_coef
        chunk_coef = self.eval_chunk_coef if deterministic else self.chunk_coef
        rest = predicted_noise if self.keeps_predicted else chunk
        return at(clean_coef, j) * clean.clamp(-clip, clip) + at(chunk_coef, j) * rest


def at(values: Tensor, index: Tensor) -> Tensor:
    """Return ``values`` [K] at ``index`` [N], shaped [N, 1, 1]."""
    return values[index][:, None, None]


def _previous(alpha_bar: Tensor) -> Tensor:
    return torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])


def _ddpm_coefficients(beta: Tensor, alpha_bar: Tensor) -> dict[str, Tensor]:
    previous = _previous(alpha_bar)
    clean = beta * previous.sqrt() / (1 - alpha_bar)
    chunk = (1 - previous) * (1 - beta).sqrt() / (1 - alpha_bar)
    std = (beta * (1 - previous) / (1 - alpha_bar)).clamp_min(MIN_VARIANCE).sqrt()
    eval_std = std.clamp_min(EVAL_MIN_STD)
    eval_std[0] = 0.0
    return {
        "clean_coef": clean,
        "chunk_coef": chunk,
        "std": std,
        "eval_clean_coef": clean,
        "eval_chunk_coef": chunk,
        "eval_std": eval_std,
    }


def _ddim_coefficients(alpha_bar: Tensor, noise: DDIMNoise) -> dict[str, Tensor]:
    previous = _previous(alpha_bar)
    values = {}
    for prefix, eta in (("", 1.0), ("eval_", 0.0)):
        std = (eta * ((1 - previous) / (1 - alpha_bar) * (1 - alpha_bar / previous)).sqrt()).clamp_min(
            math.sqrt(MIN_VARIANCE)
        )
        left = (1 - previous - std.square()).clamp_min(0.0).sqrt()
        if noise == "recomputed":
            share = left / (1 - alpha_bar).sqrt()
            values[f"{prefix}clean_coef"] = previous.sqrt() - share * alpha_bar.sqrt()
            values[f"{prefix}chunk_coef"] = share
        else:
            values[f"{prefix}clean_coef"], values[f"{prefix}chunk_coef"] = previous.sqrt(), left
        values[f"{prefix}std"] = std if eta else torch.zeros_like(std)
    return values
