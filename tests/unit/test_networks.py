"""Networks: parameter counts of the papers' tables, and forward passes against the written formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from inril_ray.policies.diffusion import DiffusionConfig, DiffusionUNetConfig
from inril_ray.policies.networks import (
    MLP,
    DiffusionMLP,
    QEnsemble,
    ResidualActor,
    ResidualBlock,
    ResidualCritic,
    ResidualMLP,
    StepEmbedding,
    ValueNetwork,
)
from inril_ray.policies.unet import FilmBlock, UNet1D

RESIP_UNET = {
    "prediction_horizon": 32,
    "widths": (256, 512, 1024),
    "group_norm_eps": 1e-5,
    "step_embedding_dim": 256,
    "film": "shallow",
}
TINY_UNET = {"kernel_size": 3, "num_groups": 2, "group_norm_eps": 1e-4, "step_embedding_dim": 4}


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# -- parameter counts -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("obs_dim", "horizon", "action_dim", "hidden", "embedding", "encoder", "expected"),
    [
        pytest.param(11, 4, 3, 512, 16, None, 553_020, id="hopper"),
        pytest.param(17, 4, 6, 512, 16, None, 568_392, id="walker_halfcheetah"),
        pytest.param(19, 4, 7, 512, 16, None, 573_516, id="lift"),
        pytest.param(23, 4, 7, 512, 16, None, 575_564, id="can_t4"),
        pytest.param(23, 1, 7, 512, 16, None, 554_039, id="can_t1"),
        pytest.param(23, 4, 7, 1024, 32, (512, 64), 2_305_212, id="square_t4"),
        pytest.param(23, 1, 7, 1024, 32, (512, 64), 2_262_183, id="square_t1"),
        pytest.param(59, 8, 14, 1024, 32, None, 2_427_088, id="transport"),
    ],
)
def test_parameters_of_the_actor(obs_dim, horizon, action_dim, hidden, embedding, encoder, expected):
    config = DiffusionConfig(
        prediction_horizon=horizon,
        action_horizon=horizon,
        hidden_dim=hidden,
        step_embedding_dim=embedding,
        obs_encoder_dims=encoder,
    )
    assert count(config.network(obs_dim, action_dim)) == expected


@pytest.mark.parametrize(("obs_dim", "expected"), [(58, 6_640_368), (44, 6_633_200)])
def test_parameters_of_the_furniture_mlp(obs_dim, expected):
    config = DiffusionConfig(
        prediction_horizon=8,
        action_horizon=8,
        hidden_dim=1024,
        num_hidden=7,
        step_embedding_dim=32,
        layer_norm=True,
        obs_encoder_dims=(512, 64),
    )
    assert count(config.network(obs_dim, 10)) == expected


@pytest.mark.parametrize(
    ("settings", "obs_dim", "expected"),
    [
        pytest.param({}, 58, 6_856_346, id="dppo_one_leg"),
        pytest.param({}, 44, 6_806_170, id="dppo_others"),
        pytest.param(RESIP_UNET, 58, 66_055_690, id="resip_one_leg"),
        pytest.param(RESIP_UNET, 44, 65_854_986, id="resip_others"),
    ],
)
def test_parameters_of_the_u_net(settings, obs_dim, expected):
    with torch.device("meta"):  # shapes without memory
        assert count(DiffusionUNetConfig(**settings).network(obs_dim, 10)) == expected


@pytest.mark.parametrize(
    ("obs_dim", "hidden", "expected"), [(11, 256, 134_913), (23, 256, 137_985), (58, 512, 556_033)]
)
def test_parameters_of_the_state_value(obs_dim, hidden, expected):
    assert count(ValueNetwork(obs_dim, hidden)) == expected


@pytest.mark.parametrize(
    ("obs_dim", "chunk_dim", "expected"),
    [
        pytest.param(11, 12, 275_970, id="hopper"),
        pytest.param(17, 24, 285_186, id="walker"),
        pytest.param(23, 28, 290_306, id="can_t4"),
        pytest.param(59, 112, 351_746, id="transport"),
    ],
)
def test_parameters_of_the_double_q(obs_dim, chunk_dim, expected):
    assert count(QEnsemble(obs_dim, chunk_dim)) == expected


def test_parameters_of_resip():
    base = ResidualMLP(58, 1024, 11, 8 * 10, "relu", dropout=0.1, post_activation=True)
    assert count(base) == 10_638_416
    assert count(ResidualActor(68, 10)) == 86_016
    assert count(ResidualCritic(68)) == 83_713


# -- embedding and MLPs -----------------------------------------------------------------------------------------------
def test_step_embedding_is_sines_and_cosines():
    embedding = StepEmbedding(8)
    embedding.layers = torch.nn.Identity()
    frequencies = np.exp(-np.log(1e4) * np.arange(4) / 3)
    steps = np.array([0, 3, 19])
    expected = np.concatenate([np.sin(steps[:, None] * frequencies), np.cos(steps[:, None] * frequencies)], axis=1)
    np.testing.assert_allclose(embedding(torch.tensor(steps)).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("expansion", [2, 4])
def test_step_embedding_has_one_hidden_layer(expansion):
    first, _, last = StepEmbedding(8, expansion).layers
    assert first.weight.shape == (8 * expansion, 8)
    assert last.weight.shape == (8, 8 * expansion)


def normalized(x: torch.Tensor) -> torch.Tensor:
    """Layer norm by hand, with the scale 1 and shift 0 that it starts with."""
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("layer_norm", [False, True])
def test_mlp_is_the_written_formula(layer_norm):
    torch.manual_seed(0)
    # Small inputs, so that the epsilon of the layer norm is seen.
    network, x = MLP(3, (4, 5), 2, "relu", layer_norm=layer_norm), 1e-3 * torch.randn(6, 3)
    first, second, last = (layer for layer in network.layers if isinstance(layer, torch.nn.Linear))
    for layer in (first, second):
        torch.nn.init.zeros_(layer.bias)
    norm = normalized if layer_norm else (lambda h: h)
    hidden = torch.relu(norm(second(torch.relu(norm(first(x))))))
    torch.testing.assert_close(network(x), last(hidden))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_residual_mlp_is_the_written_formula(layer_norm):
    torch.manual_seed(0)
    network, x = ResidualMLP(3, 4, 5, 2, "relu", layer_norm=layer_norm), torch.randn(6, 3)
    first, *blocks, last = network.layers
    norm = normalized if layer_norm else (lambda h: h)
    h = first(x)
    for block in blocks:
        h = h + block.second(torch.relu(norm(block.first(torch.relu(norm(h))))))
    assert len(blocks) == 2
    torch.testing.assert_close(network(x), last(h))


def test_residual_mlp_of_resip_activates_the_sum():
    torch.manual_seed(0)
    network, x = ResidualMLP(3, 4, 5, 2, "relu", post_activation=True), torch.randn(6, 3)
    first, *blocks, last = network.layers
    h = first(x)
    for block in blocks:
        h = torch.relu(h + block.second(torch.relu(block.first(h))))
    torch.testing.assert_close(network(x), last(h))


@pytest.mark.parametrize(
    "network", [MLP(3, (64, 64), 2, "relu", dropout=0.5), ResidualMLP(3, 64, 3, 2, "relu", dropout=0.5)]
)
def test_dropout_acts_in_training_only(network):
    x = torch.randn(5, 3)
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


def test_residual_mlp_refuses_an_even_number_of_hidden_layers():
    with pytest.raises(ValueError, match="num_hidden = 4"):
        ResidualMLP(3, 8, 4, 2, "mish")


def test_residual_block_refuses_a_layer_norm_after_which_resip_has_none():
    with pytest.raises(ValueError, match="layer_norm = True"):
        ResidualBlock(4, "relu", layer_norm=True, post_activation=True)


def test_observation_encoder_activates_only_between_its_layers():
    torch.manual_seed(0)
    sizes = {"hidden_dim": 8, "num_hidden": 3, "step_embedding_dim": 4, "activation": "mish"}
    network = DiffusionMLP(3, 2, 2, **sizes, obs_encoder_dims=(6, 5))
    chunk, step, obs = torch.randn(7, 2, 2), torch.arange(7), torch.randn(7, 3)
    first, _, second = network.obs_encoder.layers
    encoded = second(F.mish(first(obs)))
    assert (encoded < -0.35).any(), "an activation after it would not let these pass"
    expected = network.trunk(torch.cat([chunk.reshape(7, 4), network.step_embedding(step), encoded], dim=1))
    torch.testing.assert_close(network(chunk, step, obs), expected.reshape(7, 2, 2))


# -- critics and residual networks ------------------------------------------------------------------------------------
def test_values_are_one_number_per_observation():
    assert ValueNetwork(3, 8)(torch.zeros(5, 3)).shape == (5,)
    assert ResidualCritic(3)(torch.zeros(5, 3)).shape == (5,)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_members_of_an_ensemble_differ_and_stay_different(layer_norm):
    torch.manual_seed(0)
    ensemble = QEnsemble(3, 4, num=5, hidden_dims=(16, 16), layer_norm=layer_norm)
    obs, chunk = torch.randn(9, 3), torch.randn(9, 2, 2)
    optimizer = torch.optim.Adam(ensemble.parameters(), 1e-3)
    for _ in range(20):
        values = ensemble(obs, chunk)
        assert values.shape == (5, 9)
        assert (values.std(dim=0) > 1e-3).all()
        optimizer.zero_grad()
        values.square().mean().backward()
        optimizer.step()


def test_a_member_is_a_plain_mlp_on_observation_and_flat_chunk():
    ensemble = QEnsemble(3, 4, hidden_dims=(8,))
    obs, chunk = torch.randn(9, 3), torch.randn(9, 2, 2)
    values = ensemble(obs, chunk)
    torch.testing.assert_close(ensemble(obs, chunk.reshape(9, 4)), values)
    for member, row in zip(ensemble.members, values, strict=True):
        first, _, last = member.layers
        inputs = torch.stack([torch.cat([o, c[0], c[1]]) for o, c in zip(obs, chunk, strict=True)])
        torch.testing.assert_close(last(F.mish(first(inputs)))[:, 0], row)


def test_residual_actor_starts_at_zero_and_can_leave_it():
    torch.manual_seed(0)
    actor, x = ResidualActor(68, 10), torch.randn(32, 68)
    assert not actor(x).any()
    assert not actor(torch.zeros(1, 68)).any()
    assert actor.trunk.layers[-1].bias is None
    actor(x).sum().backward()
    assert actor.trunk.layers[-1].weight.grad.any()


def test_residual_networks_start_as_resip_s():
    torch.manual_seed(0)
    critic = ResidualCritic(68)
    first, second, last = (layer for layer in critic.trunk.layers if isinstance(layer, torch.nn.Linear))
    for layer, fan_in in ((first, 68), (second, 256)):
        assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.03)
        assert not layer.bias.any()
    assert last.weight.norm().item() == pytest.approx(0.25, rel=1e-5)
    assert last.bias.item() == 0.25


# -- U-Net ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("film", ["deep", "shallow"])
@pytest.mark.parametrize("channels", [(3, 4), (4, 4)])
def test_film_block_is_the_written_formula(film, channels):
    torch.manual_seed(0)
    block = FilmBlock(*channels, 5, kernel_size=3, num_groups=2, eps=1e-4, film=film)
    # A small input, so that the epsilon of the group norm is seen.
    x, condition = 1e-2 * torch.randn(6, channels[0], 8), torch.randn(6, 5)
    state = block.state_dict()

    def conv_block(h, name):
        h = F.conv1d(h, state[f"{name}.0.weight"], state[f"{name}.0.bias"], padding=1)
        grouped = h.reshape(6, 2, -1)
        centred = grouped - grouped.mean(dim=2, keepdim=True)
        return F.mish((centred / (centred.square().mean(dim=2, keepdim=True) + 1e-4).sqrt()).reshape(6, 4, 8))

    if film == "deep":
        first, _, second, _, third = block.film
        encoded = third(F.mish(second(F.mish(first(condition)))))
    else:
        encoded = block.film[1](F.mish(condition))
    scale, shift = encoded[:, :4, None], encoded[:, 4:, None]
    skip = x if channels == (4, 4) else F.conv1d(x, state["skip.weight"], state["skip.bias"])
    expected = conv_block(scale * conv_block(x, "first") + shift, "second") + skip
    torch.testing.assert_close(block(x, condition), expected, rtol=1e-4, atol=1e-5)


def test_u_net_goes_down_and_up_with_skips():
    torch.manual_seed(0)
    network = UNet1D(3, 8, 2, widths=(4, 6, 8), film="deep", **TINY_UNET)
    chunk, step, obs = torch.randn(5, 8, 2), torch.arange(5), torch.randn(5, 3)
    condition = torch.cat([network.step_embedding(step), obs], dim=1)
    level_0 = network.down[0](chunk.transpose(1, 2), condition)
    level_1 = network.down[1](network.downsample[0](level_0), condition)
    level_2 = network.down[2](network.downsample[1](level_1), condition)
    assert [x.shape for x in (level_0, level_1, level_2)] == [(5, 4, 8), (5, 6, 4), (5, 8, 2)]
    middle = network.middle(level_2, condition)
    up = network.upsample[0](network.up[0](torch.cat([middle, level_2], dim=1), condition))
    up = network.upsample[1](network.up[1](torch.cat([up, level_1], dim=1), condition))
    assert up.shape == (5, 4, 8)
    torch.testing.assert_close(network(chunk, step, obs), network.head(up).transpose(1, 2))


@pytest.mark.parametrize(("horizon", "widths"), [(1, (4,)), (6, (4, 4)), (4, (4, 4, 4)), (12, (4, 4, 4)), (32, (4, 8))])
def test_u_net_takes_every_multiple_of_its_factor(horizon, widths):
    network = UNet1D(3, horizon, 2, widths=widths, film="shallow", **TINY_UNET)
    inputs = torch.randn(5, horizon, 2), torch.arange(5), torch.randn(5, 3)
    noise = network(*inputs)
    assert noise.shape == (5, horizon, 2)
    noise.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())
    assert not torch.equal(network(inputs[0], inputs[1] + 1, inputs[2]), noise)
    assert not torch.equal(network(inputs[0], inputs[1], inputs[2] + 1), noise)


@pytest.mark.parametrize(
    ("horizon", "settings", "message"),
    [
        (6, {}, "prediction_horizon = 6: a U-Net of 3 levels needs a multiple of 4"),
        (8, {"num_groups": 3}, r"widths = \(4, 6, 8\): each must be a multiple of num_groups = 3"),
        (8, {"kernel_size": 2}, "kernel_size = 2"),
    ],
)
def test_u_net_refuses_sizes_that_do_not_fit(horizon, settings, message):
    with pytest.raises(ValueError, match=message):
        UNet1D(3, horizon, 2, widths=(4, 6, 8), film="deep", **{**TINY_UNET, **settings})
