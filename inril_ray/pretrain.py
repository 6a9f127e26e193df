"""Behaviour cloning: where fine-tuning starts."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from inril_ray.config import config
from inril_ray.demos.store import DemoStore
from inril_ray.policies.base import Policy
from inril_ray.progress import steps
from inril_ray.types import DemoBatch, InrilError


@config
class PretrainConfig:
    """Settings of behaviour cloning. Defaults are DPPO's for Robomimic."""

    num_epochs: NonNegativeInt = 3000
    batch_size: PositiveInt = 256
    lr: PositiveFloat = 1e-4
    min_lr: NonNegativeFloat = 1e-5
    warmup_epochs: NonNegativeInt = 100
    """Epochs in which the learning rate rises from ``min_lr``; then it falls along a cosine."""
    weight_decay: NonNegativeFloat = 1e-6
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    ema_every: PositiveInt = 10
    """Batches between updates of the averaged weights."""
    ema_start_epoch: NonNegativeInt = 19
    """Epochs in which the average is a copy. DPPO's 20 counts from 1."""
    batches_per_epoch: PositiveInt | None = None
    """Batches of an epoch, from as many passes over the demonstrations as they take; None: one pass."""


def learning_rate(config: PretrainConfig, epoch: int) -> float:
    """Return the learning rate of an epoch: linear warm-up, then half a cosine down to ``min_lr``."""
    span = config.lr - config.min_lr
    if epoch < config.warmup_epochs:
        return config.min_lr + span * epoch / config.warmup_epochs
    done = (epoch - config.warmup_epochs) / max(1, config.num_epochs - config.warmup_epochs)
    return config.min_lr + span * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def pretrain(
    policy: Policy,
    demos: DemoStore,
    config: PretrainConfig,
    *,
    seed: int,
    device: torch.device,
) -> dict[str, float]:
    """Clone demonstrations into ``policy.pretrained()``, which gets the averaged weights.

    Args:
        policy: trained in place.
        demos: demonstrations.
        config: settings.
        seed: of batches and noise.
        device: where the policy lives.

    Returns:
        ``bc_loss`` and ``bc_loss_held_out`` of the averaged weights, ``bc_dropped_steps``, whose gradients were not
        finite.

    Raises:
        InrilError: no step's gradients were finite.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(7,)))
    generator = torch.Generator().manual_seed(seed)
    network = policy.pretrained()
    average = copy.deepcopy(network)
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    batches = dropped = 0
    for epoch in steps(range(config.num_epochs), "cloning, epochs", config.num_epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, epoch)
        for batch in _batches(demos, rng, config):
            loss = policy.bc_loss(*imitation_inputs(batch, generator, device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if gradients_finite(parameters):
                optimizer.step()
            else:
                dropped += 1
            if batches % config.ema_every == 0:
                weight = 1.0 if epoch < config.ema_start_epoch else 1.0 - config.ema_decay
                for a, p in zip(average.parameters(), parameters, strict=True):
                    a.data.lerp_(p.data, weight)
            batches += 1
    if dropped and dropped == batches:
        raise InrilError(
            f"Cloning failed: the gradients of all {batches} steps were not finite. Lower pretrain.lr, or look at the "
            "demonstrations (inril demos inspect)."
        )
    if config.num_epochs:
        network.load_state_dict(average.state_dict())
    return {"bc_dropped_steps": float(dropped), "bc_loss": _loss(policy, demos, rng, device, held_out=False)} | (
        {"bc_loss_held_out": _loss(policy, demos, rng, device, held_out=True)} if demos.num_probe_windows else {}
    )


def gradients_finite(parameters: Sequence[nn.Parameter]) -> bool:
    """Tell whether a step may be taken: one that is not finite would spoil every weight."""
    return bool(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).isfinite())


@torch.no_grad()
def _loss(policy: Policy, demos: DemoStore, rng: np.random.Generator, device: torch.device, held_out: bool) -> float:
    batch = demos.probe() if held_out else demos.sample(rng, 1024)
    generator = torch.Generator().manual_seed(0)
    return float(policy.bc_loss(*imitation_inputs(batch, generator, device)))


def epoch_batches(demos: DemoStore, rng: np.random.Generator, batch_size: int) -> Iterator[DemoBatch]:
    """Yield all training windows once, in random order; the last batch may be smaller."""
    order = rng.permutation(demos.num_windows)
    for start in range(0, len(order), batch_size):
        yield demos.windows(order[start : start + batch_size])


def _batches(demos: DemoStore, rng: np.random.Generator, config: PretrainConfig) -> Iterator[DemoBatch]:
    if config.batches_per_epoch is None:
        return epoch_batches(demos, rng, config.batch_size)
    passes = (epoch_batches(demos, rng, config.batch_size) for _ in count())
    return islice(chain.from_iterable(passes), config.batches_per_epoch)


def imitation_inputs(
    batch: DemoBatch, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (obs, actions, noise, uniform), the inputs of an imitation loss, on ``device``.

    Noise is drawn on the CPU, so that it is the same wherever the policy lives.
    """
    actions = torch.from_numpy(batch.actions)
    noise = torch.randn(actions.shape, generator=generator)
    uniform = torch.rand(len(actions), generator=generator)
    return tuple(t.to(device) for t in (torch.from_numpy(batch.obs), actions, noise, uniform))  # type: ignore[return-value]
