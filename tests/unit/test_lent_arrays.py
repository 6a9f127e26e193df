"""What Ray lends is read-only: nothing may make a tensor that could write to it, of which PyTorch warns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from inril_ray.algorithms import ALGORITHMS
from inril_ray.demos.store import DemoArrays
from inril_ray.experiment import load_acting
from tests.fakes import fake_demos, tiny_learner, tiny_rollouts


@pytest.fixture(autouse=True)
def warn_always() -> Iterator[None]:
    """PyTorch says it once in a process, and the tests before this one may have heard it."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def lent(value: Any) -> Any:
    """Return a copy of arrays, in mappings and in fields of messages, that nobody may write to."""
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flags.writeable = False
    elif isinstance(value, dict):
        value = {name: lent(part) for name, part in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.replace(value, **{f.name: lent(getattr(value, f.name)) for f in dataclasses.fields(value)})
    return value


def test_it_would_be_noticed() -> None:
    with pytest.raises(UserWarning, match="not writable"):
        torch.from_numpy(lent(np.zeros(2)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_demonstrations_rollouts_and_weights_are_copied(algorithm: str) -> None:
    demos: DemoArrays = lent(fake_demos())
    rl = {"offline_updates": 2} if algorithm == "cal_ql" else {}
    learner = tiny_learner(algorithm, every=1, il_steps=2, demos=demos, rl=rl)
    rollouts = tiny_rollouts(learner.algorithm.acting, 2)
    for rollout in rollouts:
        learner.learn(lent(rollout), fresh_start=True)
    weights = {name: value.numpy() for name, value in learner.algorithm.acting.state_dict().items()}
    load_acting(learner.algorithm.acting, lent(weights))
