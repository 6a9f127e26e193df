"""Building blocks: step embedding, plain and residual MLP, DPPO's noise predictor, values, ResiP's residual networks.

Source: Ren et al. 2024 (DPPO) and Ankile et al. 2024 (ResiP), whose parameter counts the tests assert. Weights start
from PyTorch's defaults unless the class says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"mish": nn.Mish, "relu": nn.ReLU}
Activation = Literal["mish", "relu"]
LAYER_NORM_EPS = 1e-6


def _odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError("a residual MLP has an odd number of hidden layers: the first, and two in each block")
    return number


ResidualDepth = Annotated[int, Field(ge=1), AfterValidator(_odd)]
"""Hidden layers of a residual MLP."""


class StepEmbedding(nn.Module):
    """Sinusoidal embedding of a denoising step, followed by a small MLP.

    Args:
        dim: width of the embedding, even.
        expansion: width of the hidden layer, in multiples of ``dim``.
    """

    frequencies: Tensor

    def __init__(self, dim: int, expansion: int = 2) -> None:
        super().__init__()
        half, hidden = dim // 2, expansion * dim
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half) / (half - 1))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.layers = nn.Sequential(nn.Linear(dim, hidden), nn.Mish(), nn.Linear(hidden, dim))

    def forward(self, step: Tensor) -> Tensor:
        """Embed steps [N] as [N, dim]."""
        angles = step[:, None].float() * self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], dim=-1))


class MLP(nn.Module):
    """Linear, layer norm (optional), dropout (optional) and activation, for each hidden layer; then a linear layer.

    Args:
        in_dim: input width.
        hidden_dims: widths of the hidden layers.
        out_dim: output width.
        activation: name.
        layer_norm: normalise the hidden layers.
        dropout: probability; its masks come from torch's global generator.
        last_bias: the last layer has a bias.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        out_dim: int,
        activation: Activation,
        *,
        layer_norm: bool = False,
        dropout: float = 0.0,
        last_bias: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [in_dim, *hidden_dims]
        for before, after in pairwise(widths):
            layers.append(nn.Linear(before, after))
            if layer_norm:
                layers.append(nn.LayerNorm(after, eps=LAYER_NORM_EPS))
            if dropout:
                layers.append(nn.Dropout(dropout))
            layers.append(ACTIVATIONS[activation]())
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], out_dim, bias=last_bias))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, in_dim] to [N, out_dim]."""
        return self.layers(x)


class ResidualBlock(nn.Module):
    """Two linear layers and a skip connection.

    DPPO's: x + L2(drop(act(LN2(L1(act(LN1(x))))))), layer norms optional. With ``post_activation``, ResiP's:
    act(x + L2(drop(act(L1(x))))), which has no layer norm.

    Args:
        dim: width.
        activation: name.
        layer_norm: normalise before each activation.
        dropout: probability; its masks come from torch's global generator.
        post_activation: activate the sum instead of the input.

    Raises:
        ValueError: ``layer_norm`` with ``post_activation``.
    """

    def __init__(
        self,
        dim: int,
        activation: Activation,
        *,
        layer_norm: bool = False,
        dropout: float = 0.0,
        post_activation: bool = False,
    ) -> None:
        super().__init__()
        if layer_norm and post_activation:
            raise ValueError("layer_norm = True: a block with post_activation has no layer norm.")
        self.first, self.second = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.activation = ACTIVATIONS[activation]()
        self.first_norm, self.second_norm = (
            nn.LayerNorm(dim, eps=LAYER_NORM_EPS) if layer_norm else nn.Identity() for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)
        self.post_activation = post_activation

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, dim] to [N, dim]."""
        h = x if self.post_activation else self.activation(self.first_norm(x))
        h = self.dropout(self.activation(self.second_norm(self.first(h))))
        y = x + self.second(h)
        return self.activation(y) if self.post_activation else y


class ResidualMLP(nn.Module):
    """Linear, (num_hidden - 1) / 2 residual blocks, linear; no activation before the output layer.

    Args:
        in_dim: input width.
        hidden_dim: width of the hidden layers.
        num_hidden: hidden layers, odd.
        out_dim: output width.
        activation: name.
        layer_norm: see :class:`ResidualBlock`.
        dropout: see :class:`ResidualBlock`.
        post_activation: see :class:`ResidualBlock`.

    Raises:
        ValueError: ``num_hidden`` is even.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        num_hidden: int,
        out_dim: int,
        activation: Activation,
        *,
        layer_norm: bool = False,
        dropout: float = 0.0,
        post_activation: bool = False,
    ) -> None:
        super().__init__()
        if num_hidden % 2 == 0:
            raise ValueError(f"num_hidden = {num_hidden}: a residual MLP needs an odd number of hidden layers.")
        blocks = [
            ResidualBlock(
                hidden_dim, activation, layer_norm=layer_norm, dropout=dropout, post_activation=post_activation
            )
            for _ in range((num_hidden - 1) // 2)
        ]
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
        layer_norm: normalise in the residual blocks.
        obs_encoder_dims: widths of an MLP that the observation passes first, its output last; None for none.
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
        layer_norm: bool = False,
        obs_encoder_dims: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.horizon, self.action_dim = horizon, action_dim
        flat = horizon * action_dim
        self.step_embedding = StepEmbedding(step_embedding_dim)
        self.obs_encoder = nn.Identity()
        if obs_encoder_dims:
            self.obs_encoder = MLP(obs_dim, obs_encoder_dims[:-1], obs_encoder_dims[-1], activation)
            obs_dim = obs_encoder_dims[-1]
        in_dim = flat + step_embedding_dim + obs_dim
        self.trunk = ResidualMLP(in_dim, hidden_dim, num_hidden, flat, activation, layer_norm=layer_norm)

    def forward(self, chunk: Tensor, step: Tensor, obs: Tensor) -> Tensor:
        """Return the predicted noise [N, H, A] for chunks [N, H, A], steps [N] and observations [N, O]."""
        inputs = torch.cat([chunk.flatten(1), self.step_embedding(step), self.obs_encoder(obs)], dim=-1)
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


class QEnsemble(nn.Module):
    """Values of (observation, action chunk) by members that are initialised independently.

    Args:
        obs_dim: observation width.
        chunk_dim: width of a flat chunk, H times A.
        num: E, members.
        hidden_dims: widths of the hidden layers.
        layer_norm: normalise the hidden layers.
        dropout: probability, in the hidden layers.
        activation: name.

    Source: two members without layer norm are DPPO's critic of its Q-learning baselines.
    """

    def __init__(
        self,
        obs_dim: int,
        chunk_dim: int,
        num: int = 2,
        hidden_dims: Sequence[int] = (256, 256, 256),
        layer_norm: bool = False,
        dropout: float = 0.0,
        activation: Activation = "mish",
    ) -> None:
        super().__init__()
        # Copies of one member would stay equal for ever, since all learn the same target.
        self.members = nn.ModuleList(
            MLP(obs_dim + chunk_dim, hidden_dims, 1, activation, layer_norm=layer_norm, dropout=dropout)
            for _ in range(num)
        )

    def forward(self, obs: Tensor, chunk: Tensor) -> Tensor:
        """Return values [E, N] of normalised observations [N, O] and chunks [N, H, A] or [N, H * A]."""
        inputs = torch.cat([obs, chunk.flatten(1)], dim=-1)
        return torch.stack([member(inputs).squeeze(-1) for member in self.members])


def _initialize(network: MLP, last_gain: float, last_bias: float) -> None:
    """Hidden layers Kaiming-normal for ReLU with zero bias; the last one orthogonal, its bias constant."""
    *hidden, last = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    for layer in hidden:
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    nn.init.orthogonal_(last.weight, gain=last_gain)
    if last.bias is not None:
        nn.init.constant_(last.bias, last_bias)


class ResidualActor(nn.Module):
    """Mean of the correction of a base action; zero until it is trained.

    Args:
        in_dim: width of the input, [normalised observation, normalised base action].
        action_dim: action width.
        hidden_dims: widths of the hidden layers.
        last_gain: gain of the last layer's orthogonal weights; it has no bias.

    Source: ResiP (Ankile et al. 2024).
    """

    def __init__(
        self, in_dim: int, action_dim: int, hidden_dims: Sequence[int] = (256, 256), last_gain: float = 0.0
    ) -> None:
        super().__init__()
        self.trunk = MLP(in_dim, hidden_dims, action_dim, "relu", last_bias=False)
        _initialize(self.trunk, last_gain, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean correction [N, A], before it is scaled, for inputs [N, in_dim]."""
        return self.trunk(x)


class ResidualCritic(nn.Module):
    """State value of [normalised observation, normalised base action].

    Args:
        in_dim: width of the input.
        hidden_dims: widths of the hidden layers.
        last_gain: gain of the last layer's orthogonal weights.
        last_bias: its bias at the start.

    Source: ResiP (Ankile et al. 2024).
    """

    def __init__(
        self, in_dim: int, hidden_dims: Sequence[int] = (256, 256), last_gain: float = 0.25, last_bias: float = 0.25
    ) -> None:
        super().__init__()
        self.trunk = MLP(in_dim, hidden_dims, 1, "relu")
        _initialize(self.trunk, last_gain, last_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return values [N] of inputs [N, in_dim]."""
        return self.trunk(x).squeeze(-1)
