"""Weights on their way to the workers: one flat float32 vector for each slot, pulled by version.

There are two slots. ``everything`` changes only when a policy is loaded; ``trainable`` changes with every version. The
driver passes references in a list, so that a worker fetches a slot only when it is newer than what it holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from inril_ray.types import FloatArray, InrilError


@dataclass(frozen=True, kw_only=True)
class WeightRefs:
    """A version of the policy as references to objects in the store."""

    version: int
    """Learner updates behind these weights."""
    generation: int
    """Raised whenever ``everything`` is published anew."""
    everything: list[Any]
    """[reference] to all weights of the generation."""
    trainable: list[Any]
    """[reference] to the weights that fine-tuning changes, of this version."""


def flatten(weights: Mapping[str, torch.Tensor]) -> FloatArray:
    """Return all weights as one float32 vector, in the order of the mapping."""
    return torch.cat([w.detach().flatten().float() for w in weights.values()]).cpu().numpy()


def unflatten(vector: FloatArray, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a vector's parts by name, shaped as in ``like``.

    Raises:
        InrilError: the lengths differ.
    """
    total = sum(w.numel() for w in like.values())
    if len(vector) != total:
        raise InrilError(f"The published weights have {len(vector)} numbers, this policy has {total}.")
    flat = torch.from_numpy(np.array(vector))
    parts = flat.split([w.numel() for w in like.values()])
    return {name: part.view(w.shape) for (name, w), part in zip(like.items(), parts, strict=True)}
