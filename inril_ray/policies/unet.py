"""Convolutional noise predictor over the steps of an action chunk, in DPPO's and in ResiP's variant.

Source: Chi et al. 2023 (Diffusion Policy); the variants are those of Ren et al. 2024 (DPPO) and Ankile et al. 2024
(ResiP), whose parameter counts the tests assert. Weights start from PyTorch's defaults.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from inril_ray.policies.networks import StepEmbedding

Film = Literal["deep", "shallow"]
"""``deep``: linear, Mish, linear, Mish, linear (DPPO). ``shallow``: Mish, linear (ResiP)."""


def check_unet_sizes(horizon: int, widths: Sequence[int], kernel_size: int, num_groups: int) -> None:
    """Check that a chunk can be halved and doubled between the levels, and channels be grouped.

    Raises:
        ValueError: names the size, its value and what is allowed.
    """
    if not widths:
        raise ValueError("widths = (): a U-Net needs at least one level.")
    factor = 2 ** (len(widths) - 1)
    if horizon % factor:
        raise ValueError(
            f"prediction_horizon = {horizon}: a U-Net of {len(widths)} levels needs a multiple of {factor}."
        )
    for width in widths:
        if width % num_groups:
            raise ValueError(f"widths = {tuple(widths)}: each must be a multiple of num_groups = {num_groups}.")
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size = {kernel_size}: only odd kernels keep the length of a chunk.")


class ConvBlock(nn.Sequential):
    """Convolution that keeps the length, group norm, Mish.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd.
        num_groups: groups of channels that are normalised together.
        eps: added to their variance.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, num_groups: int, eps: float) -> None:
        super().__init__(
            nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(num_groups, out_channels, eps=eps),
            nn.Mish(),
        )


class FilmBlock(nn.Module):
    """Two convolutions and a skip connection; the condition scales and shifts the channels in between.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        condition_dim: width of the condition.
        kernel_size: odd.
        num_groups: groups of the group norms.
        eps: their epsilon.
        film: encoder of the condition.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        condition_dim: int,
        *,
        kernel_size: int,
        num_groups: int,
        eps: float,
        film: Film,
    ) -> None:
        super().__init__()
        self.first = ConvBlock(in_channels, out_channels, kernel_size, num_groups, eps)
        self.second = ConvBlock(out_channels, out_channels, kernel_size, num_groups, eps)
        width = 2 * out_channels
        if film == "deep":
            self.film = nn.Sequential(
                nn.Linear(condition_dim, width), nn.Mish(), nn.Linear(width, width), nn.Mish(), nn.Linear(width, width)
            )
        else:
            self.film = nn.Sequential(nn.Mish(), nn.Linear(condition_dim, width))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv1d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map [N, in_channels, L] to [N, out_channels, L] under a condition [N, condition_dim]."""
        scale, shift = self.film(condition)[:, :, None].chunk(2, dim=1)
        return self.second(scale * self.first(x) + shift) + self.skip(x)


class FilmPair(nn.Module):
    """Two blocks, the first of which changes the number of channels. Arguments as :class:`FilmBlock`."""

    def __init__(self, in_channels: int, out_channels: int, condition_dim: int, **settings: Any) -> None:
        super().__init__()
        self.first = FilmBlock(in_channels, out_channels, condition_dim, **settings)
        self.second = FilmBlock(out_channels, out_channels, condition_dim, **settings)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map [N, in_channels, L] to [N, out_channels, L] under a condition [N, condition_dim]."""
        return self.second(self.first(x, condition), condition)


class UNet1D(nn.Module):
    """Predicts the noise in an action chunk; the step embedding and the observation are the condition of every block.

    On the way down two blocks a level, the length halved between levels; two blocks in the middle; on the way up two
    blocks before each doubling, which also see what the way down left at that length; then a convolution and a linear
    map to actions.

    Args:
        obs_dim: observation width.
        horizon: actions in a chunk, a multiple of 2 to the power of (levels - 1).
        action_dim: action width.
        widths: channels of each level.
        kernel_size: odd.
        num_groups: groups of the group norms; divides every width.
        group_norm_eps: their epsilon.
        step_embedding_dim: width of the step embedding.
        film: encoder of the condition.

    Raises:
        ValueError: sizes that don't fit; names the size, its value and what is allowed.
    """

    def __init__(
        self,
        obs_dim: int,
        horizon: int,
        action_dim: int,
        *,
        widths: Sequence[int],
        kernel_size: int,
        num_groups: int,
        group_norm_eps: float,
        step_embedding_dim: int,
        film: Film,
    ) -> None:
        super().__init__()
        check_unet_sizes(horizon, widths, kernel_size, num_groups)
        condition_dim = step_embedding_dim + obs_dim

        def pair(in_channels: int, out_channels: int) -> FilmPair:
            return FilmPair(
                in_channels,
                out_channels,
                condition_dim,
                kernel_size=kernel_size,
                num_groups=num_groups,
                eps=group_norm_eps,
                film=film,
            )

        self.step_embedding = StepEmbedding(step_embedding_dim, expansion=4)
        self.down = nn.ModuleList(pair(a, b) for a, b in zip([action_dim, *widths[:-1]], widths, strict=True))
        self.downsample = nn.ModuleList(nn.Conv1d(c, c, 3, stride=2, padding=1) for c in widths[:-1])
        self.middle = pair(widths[-1], widths[-1])
        # An input of the way up is the level below beside what the way down left there.
        up = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(pair(2 * a, b) for a, b in up)
        self.upsample = nn.ModuleList(nn.ConvTranspose1d(b, b, 4, stride=2, padding=1) for _, b in up)
        self.head = nn.Sequential(
            ConvBlock(widths[0], widths[0], kernel_size, num_groups, group_norm_eps),
            nn.Conv1d(widths[0], action_dim, 1),
        )

    def forward(self, chunk: Tensor, step: Tensor, obs: Tensor) -> Tensor:
        """Return the predicted noise [N, H, A] for chunks [N, H, A], steps [N] and observations [N, O]."""
        condition = torch.cat([self.step_embedding(step), obs], dim=-1)
        x, skips = chunk.transpose(1, 2), []
        for level, blocks in enumerate(self.down):
            x = blocks(x, condition)
            skips.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x)
        x = self.middle(x, condition)
        for blocks, upsample in zip(self.up, self.upsample, strict=True):
            x = upsample(blocks(torch.cat([x, skips.pop()], dim=1), condition))
        return self.head(x).transpose(1, 2)
