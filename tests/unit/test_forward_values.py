"""Forward values of every network against numpy, from the same weights: a parameter count can't see an order."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from inril_ray.algorithms import ALGORITHMS
from inril_ray.policies import networks, unet
from inril_ray.policies.networks import (
    MLP,
    DiffusionMLP,
    QEnsemble,
    ResidualActor,
    ResidualCritic,
    ResidualMLP,
    StepEmbedding,
    ValueNetwork,
)
from inril_ray.policies.unet import UNet1D
from tests.fakes import tiny_algorithm, tiny_policy

Weights = dict[str, np.ndarray]
Array = np.ndarray
RNG = np.random.default_rng(0)
OBS, CHUNK, STEP = RNG.normal(size=(6, 5)), RNG.normal(size=(6, 8, 2)), np.array([0, 1, 2, 5, 11, 19])


# -- numpy ------------------------------------------------------------------------------------------------------------
def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def mish(x: Array) -> Array:
    return x * np.tanh(np.log1p(np.exp(x)))


ACTIVATIONS = {"relu": relu, "mish": mish}


def weights_of(module: torch.nn.Module) -> Weights:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def below(w: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}


def linear(w: Weights, x: Array) -> Array:
    return x @ w["weight"].T + w.get("bias", 0.0)


def layer_norm(w: Weights, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return w["weight"] * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) + w["bias"]


def stack(w: Weights, x: Array, act: Callable[[Array], Array], eps: float | None = None) -> Array:
    """Linear layers and norms by number; an activation wherever a number has no weights, as PyTorch counts them."""
    for i in range(max(int(name.split(".")[0]) for name in w) + 1):
        layer = below(w, f"{i}.")
        x = act(x) if not layer else linear(layer, x) if layer["weight"].ndim == 2 else layer_norm(layer, x)
    return x


def residual_mlp(w: Weights, x: Array, act: Callable[[Array], Array], post: bool = False) -> Array:
    last = max(int(name.split(".")[0]) for name in w)
    x = linear(below(w, "0."), x)
    for i in range(1, last):
        block = below(w, f"{i}.")
        norms = [below(block, f"{name}_norm.") for name in ("first", "second")]
        first, second = ((lambda h, n=n: layer_norm(n, h)) if n else (lambda h: h) for n in norms)
        h = x if post else act(first(x))
        h = linear(below(block, "second."), act(second(linear(below(block, "first."), h))))
        x = act(x + h) if post else x + h
    return linear(below(w, f"{last}."), x)


def embedded(w: Weights, step: Array, dim: int) -> Array:
    angles = step[:, None] * np.exp(-np.log(1e4) * np.arange(dim // 2) / (dim // 2 - 1))
    return stack(below(w, "layers."), np.concatenate([np.sin(angles), np.cos(angles)], axis=1), mish)


def conv(w: Weights, x: Array, stride: int = 1, padding: int | None = None) -> Array:
    size = w["weight"].shape[2]
    padding = size // 2 if padding is None else padding
    windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (padding, padding))), size, axis=2)[:, :, ::stride]
    return np.einsum("nclk,ock->nol", windows, w["weight"]) + w["bias"][:, None]


def transposed_conv(w: Weights, x: Array) -> Array:
    """Kernel 4, stride 2, padding 1: an input spreads over four places, of which the outermost fall off."""
    out = np.zeros((len(x), w["weight"].shape[1], 2 * x.shape[2] + 2))
    for i in range(x.shape[2]):
        out[:, :, 2 * i : 2 * i + 4] += np.einsum("nc,cok->nok", x[:, :, i], w["weight"])
    return out[:, :, 1:-1] + w["bias"][:, None]


def conv_block(w: Weights, x: Array, groups: int, eps: float) -> Array:
    x = conv(below(w, "0."), x)
    g = x.reshape(len(x), groups, -1)
    g = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + eps)
    return mish(g.reshape(x.shape) * w["1.weight"][:, None] + w["1.bias"][:, None])


def film_pair(w: Weights, x: Array, condition: Array, groups: int, eps: float) -> Array:
    for name in ("first.", "second."):
        block = below(w, name)
        scale, shift = np.split(stack(below(block, "film."), condition, mish)[:, :, None], 2, axis=1)
        h = scale * conv_block(below(block, "first."), x, groups, eps) + shift
        skip = below(block, "skip.")
        x = conv_block(below(block, "second."), h, groups, eps) + (conv(skip, x, padding=0) if skip else x)
    return x


def u_net(
    w: Weights, chunk: Array, step: Array, obs: Array, *, dim: int, levels: int, groups: int, eps: float
) -> Array:
    condition = np.concatenate([embedded(below(w, "step_embedding."), step, dim), obs], axis=1)
    x, skips = chunk.transpose(0, 2, 1), []
    for i in range(levels):
        x = film_pair(below(w, f"down.{i}."), x, condition, groups, eps)
        skips.append(x)
        x = conv(below(w, f"downsample.{i}."), x, stride=2) if i < levels - 1 else x
    x = film_pair(below(w, "middle."), x, condition, groups, eps)
    for i in range(levels - 1):
        x = film_pair(below(w, f"up.{i}."), np.concatenate([x, skips.pop()], axis=1), condition, groups, eps)
        x = transposed_conv(below(w, f"upsample.{i}."), x)
    return conv(below(w, "head.1."), conv_block(below(w, "head.0."), x, groups, eps)).transpose(0, 2, 1)


def diffusion_mlp(w: Weights, chunk: Array, step: Array, obs: Array, act: Callable[[Array], Array], dim: int) -> Array:
    encoder = below(w, "obs_encoder.layers.")
    seen = stack(encoder, obs, act) if encoder else obs
    parts = [chunk.reshape(len(chunk), -1), embedded(below(w, "step_embedding."), step, dim), seen]
    return residual_mlp(below(w, "trunk.layers."), np.concatenate(parts, axis=1), act).reshape(chunk.shape)


def ensemble(w: Weights, obs: Array, chunk: Array, act: Callable[[Array], Array]) -> Array:
    inputs = np.concatenate([obs, chunk.reshape(len(chunk), -1)], axis=1)
    num = max(int(name.split(".")[1]) for name in w) + 1
    return np.stack([stack(below(w, f"members.{i}.layers."), inputs, act)[:, 0] for i in range(num)])


# -- networks ---------------------------------------------------------------------------------------------------------
def scattered(module: torch.nn.Module) -> torch.nn.Module:
    """In float64 and evaluation mode, with all weights away from where they start: norms scale, zeros are none."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return module.double().eval()


def relu_stack(w: Weights, x: Array) -> Array:
    return stack(below(w, "trunk.layers."), x, relu)


MLP_SIZES: dict[str, Any] = {"hidden_dim": 8, "num_hidden": 5, "step_embedding_dim": 6}
UNET_SIZES: dict[str, Any] = {"widths": (4, 6, 8), "kernel_size": 5, "num_groups": 2, "step_embedding_dim": 6}


def unet_case(film: Any, eps: float) -> tuple[torch.nn.Module, Callable[..., Array], tuple[Array, ...]]:
    network = UNet1D(5, 8, 2, film=film, group_norm_eps=eps, **UNET_SIZES)
    return network, lambda w, *x: u_net(w, *x, dim=6, levels=3, groups=2, eps=eps), (1e-2 * CHUNK, STEP, OBS)


CASES: dict[str, Callable[[], tuple[torch.nn.Module, Callable[..., Array], tuple[Array, ...]]]] = {
    "embedding": lambda: (StepEmbedding(8), lambda w, x: embedded(w, x, 8), (STEP,)),
    **{
        f"mlp_{act}_{'norm' if norm else 'plain'}": lambda act=act, norm=norm: (
            MLP(5, (7, 6), 3, act, layer_norm=norm, dropout=0.0),
            lambda w, x: stack(below(w, "layers."), x, ACTIVATIONS[act]),
            (1e-2 * OBS,),
        )
        for act in ACTIVATIONS
        for norm in (False, True)
    },
    **{
        f"residual_mlp_{'norm' if norm else 'post' if post else 'plain'}": lambda norm=norm, post=post: (
            ResidualMLP(5, 7, 5, 3, "relu", layer_norm=norm, post_activation=post, dropout=0.0),
            lambda w, x: residual_mlp(below(w, "layers."), x, relu, post),
            (OBS,),
        )
        for norm, post in ((False, False), (True, False), (False, True))
    },
    **{
        f"diffusion_mlp_{act}_{'encoder' if encoder else 'plain'}": lambda act=act, encoder=encoder: (
            DiffusionMLP(
                5, 8, 2, **MLP_SIZES, activation=act, layer_norm=encoder is not None, obs_encoder_dims=encoder
            ),
            lambda w, *x: diffusion_mlp(w, *x, ACTIVATIONS[act], 6),
            (CHUNK, STEP, OBS),
        )
        for act, encoder in (("relu", None), ("mish", (7, 4)))
    },
    "u_net_deep": lambda: unet_case("deep", 1e-4),
    "u_net_shallow": lambda: unet_case("shallow", 1e-5),
    "value": lambda: (
        ValueNetwork(5, 8, 5),
        lambda w, x: residual_mlp(below(w, "trunk.layers."), x, mish)[:, 0],
        (OBS,),
    ),
    "ensemble": lambda: (
        QEnsemble(5, 16, 3, (8, 7), layer_norm=True, activation="relu"),
        lambda w, *x: ensemble(w, *x, relu),
        (OBS, CHUNK),
    ),
    "residual_actor": lambda: (ResidualActor(5, 3, (8, 7)), relu_stack, (OBS,)),
    "residual_critic": lambda: (ResidualCritic(5, (8, 7)), lambda w, x: relu_stack(w, x)[:, 0], (OBS,)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_network_computes_what_numpy_does(name: str) -> None:
    network, expected, inputs = CASES[name]()
    scattered(network)
    with torch.no_grad():
        values = network(*map(torch.from_numpy, inputs)).numpy()
    wanted = expected(weights_of(network), *inputs)
    assert np.abs(wanted).std() > 1e-3
    np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-6)  # frequencies are of float32


def test_every_network_is_among_them() -> None:
    seen = {type(m) for make in CASES.values() for m in make()[0].modules()}
    for module in (networks, unet):
        defined = {c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__}
        assert {c for c in defined if issubclass(c, torch.nn.Module)} <= seen


# -- what algorithms and policies make of them ------------------------------------------------------------------------
CRITICS: dict[str, dict[str, str]] = {
    **{name: {"critic": "value_mish"} for name in ("dppo", "ppo")},
    "residual_ppo": {"critic": "plain_relu"},
    "awr": {"value": "value_mish"},
    "idql": {"critics": "ensemble_mish", "value": "value_mish"},
    **{name: {"critics": "ensemble_mish"} for name in ("dipo", "dql", "qsm")},
    "sac": {"critics": "ensemble_relu"},
    **{name: {"critics": "ensemble_relu_norm"} for name in ("rlpd", "cal_ql", "ibrl")},
    "rwr": {},
}
"""Algorithm to its critics and their kinds: network, activation, layer norm."""


@pytest.mark.parametrize("name", CRITICS)
def test_critics_are_those_of_the_source(name: str) -> None:
    algorithm = tiny_algorithm(name)
    modules = algorithm.modules()
    assert {n for n in ("critic", "critics", "value") if n in modules} == set(CRITICS[name])
    obs = RNG.normal(size=(6, 5 if name == "residual_ppo" else 3))
    for module, described in CRITICS[name].items():
        kind, act, *norm = described.split("_")
        network = scattered(modules[module])
        w = weights_of(network)
        inputs = (obs, RNG.normal(size=(6, *algorithm.chunk_shape))) if kind == "ensemble" else (obs,)
        with torch.no_grad():
            values = network(*map(torch.from_numpy, inputs)).numpy()
        if kind == "ensemble":
            expected = ensemble(w, *inputs, ACTIVATIONS[act])
        elif kind == "value":
            expected = residual_mlp(below(w, "trunk.layers."), obs, ACTIVATIONS[act])[:, 0]
        else:
            expected = stack(below(w, "trunk.layers."), obs, ACTIVATIONS[act])[:, 0]
        assert any(v.ndim == 1 and n.endswith("weight") for n, v in w.items()) == bool(norm)
        np.testing.assert_allclose(values, expected, rtol=1e-9)


def test_every_algorithm_is_among_them() -> None:
    assert set(CRITICS) == set(ALGORITHMS)


def test_means_of_policies_without_diffusion() -> None:
    obs = torch.from_numpy(RNG.normal(size=(6, 3)))
    for kind, act, post, end in (
        ("gaussian_mlp", mish, False, np.tanh),
        ("residual_gaussian", relu, True, lambda x: x),
    ):
        policy = scattered(tiny_policy(kind))
        gaussian = getattr(policy, "base", policy)
        expected = end(residual_mlp(below(weights_of(gaussian.actor), "layers."), obs.numpy(), act, post))
        values = gaussian.mean(obs).detach().numpy()
        np.testing.assert_allclose(values.reshape(6, -1), expected, rtol=1e-9, err_msg=kind)
    policy = scattered(tiny_policy("tanh_gaussian"))
    seen = policy.normalizer.obs(obs).numpy()
    mean, raw = np.split(stack(weights_of(policy.actor), seen, relu), 2, axis=1)
    noise = RNG.normal(size=(6, 3, 2))
    std = np.exp(0.5 * (-10 + 7 * (np.tanh(raw) + 1)))
    expected = np.tanh(mean + std * noise.reshape(6, -1))
    values = policy.sample(obs, torch.from_numpy(noise)).detach().numpy()
    np.testing.assert_allclose(values.reshape(6, -1), expected, rtol=1e-9)
