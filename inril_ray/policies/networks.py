"""Building blocks: step embedding, residual MLP, value network.

Source: Ren et al. 2024 (DPPO), whose parameter counts the tests assert. Weights start from PyTorch's defaults.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"mish": nn.Mish, "relu": nn.ReLU}
Activation = Literal["mish", "relu"]


class StepEmbedding(nn.Module):
    """Sinusoidal embedding of a denoising step, followed by a small MLP.

    Args:
        dim: width of the embedding, even.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half) / (half - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(dim, 2 * dim), nn.Mish(), nn.Linear(2 * dim, dim))

    def forward(self, step: Tensor) -> Tensor:
        """Embed steps [N] as [N, dim]."""
        angles = step[:, None].float() * self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=-1))


class ResidualBlock(nn.Module):
    """Pre-activation block: x + L2(act(L1(act(x))))."""

    def __init__(self, dim: int, activation: Activation) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, dim] to [N, dim]."""
        return x + self.second(self.activation(self.first(self.activation(x))))


class ResidualMLP(nn.Module):
    """Linear, (num_hidden - 1) / 2 residual blocks, linear; no activation before the output layer.

    Args:
        in_dim: input width.
        hidden_dim: width of the hidden layers.
        num_hidden: hidden layers, odd.
        out_dim: output width.
        activation: name.

    Raises:
        ValueError: ``num_hidden`` is even.
    """

    def __init__(self, in_dim: int, hidden_dim: int, num_hidden: int, out_dim: int, activation: Activation) -> None:
        super().__init__()
        if num_hidden % 2 == 0:
            raise ValueError(f"num_hidden = {num_hidden}: a residual MLP needs an odd number of hidden layers.")
        blocks = [ResidualBlock(hidden_dim, activation) for _ in range((num_hidden - 1) // 2)]
        self.layers = nn.Sequential(nn.Linear(in_dim, hidden_dim), *blocks, nn.Linear(hidden_dim, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_dim] to [N, out_dim]."""
        return self.layers(x)


class DiffusionMLP(nn.Module):
    """Predicts the noise in an action chunk from [noisy chunk, step embedding, observation].

    Args:
        obs_dim: observation width.
        horizon: actions in a chunk.
        action_dim: action width.
        hidden_dim: width of the residual MLP.
        num_hidden: its hidden layers, odd.
        step_embedding_dim: width of the step embedding.
        activation: name.
    """

    def __init__(
        self,
        obs_dim: int,
        horizon: int,
        action_dim: int,
        *,
        hidden_dim: int,
        num_hidden: int,
        step_embedding_dim: int,
        activation: Activation,
    ) -> None:
        super().__init__()
        self.horizon, self.action_dim = horizon, action_dim
        flat = horizon * action_dim
        self.step_embedding = StepEmbedding(step_embedding_dim)
        self.trunk = ResidualMLP(flat + step_embedding_dim + obs_dim, hidden_dim, num_hidden, flat, activation)

    def forward(self, chunk: Tensor, step: Tensor, obs: Tensor) -> Tensor:
        """Return the predicted noise [N, H, A] for chunks [N, H, A], steps [N] and observations [N, O]."""
        inputs = torch.cat([chunk.flatten(1), self.step_embedding(step), obs], dim=-1)
        return self.trunk(inputs).view(-1, self.horizon, self.action_dim)


class ValueNetwork(nn.Module):
    """State value of a normalised observation.

    Args:
        obs_dim: observation width.
        hidden_dim: width.
        num_hidden: hidden layers, odd.
        activation: name.
    """

    def __init__(
        self, obs_dim: int, hidden_dim: int = 256, num_hidden: int = 3, activation: Activation = "mish"
    ) -> None:
        super().__init__()
        self.trunk = ResidualMLP(obs_dim, hidden_dim, num_hidden, 1, activation)

    def forward(self, obs: Tensor) -> Tensor:
        """Return values [N] of normalised observations [N, O]."""
        return self.trunk(obs).squeeze(-1)
