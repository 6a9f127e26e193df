"""Demonstrations as plain arrays, and what is known about them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inril_ray.types import UNSTATED, FloatArray, InrilError, Interface

IMAGES = "images/"
"""Prefix of the columns that hold images."""


@dataclass(frozen=True, kw_only=True)
class DemoInfo:
    """What is known about a set of demonstrations."""

    source_file: str
    """Name of the file that it was converted from."""
    format: str
    env_name: str
    semantics: str
    source: str
    """Who acted: ``human``, ``scripted``, ``planner``, ``rl`` or ``unknown``."""
    obs_keys: tuple[tuple[str, int], ...]
    content_hash: str
    """SHA-256 of the arrays: two stores with equal hashes hold equal demonstrations."""
    metadata: Mapping[str, Any]
    stated: Interface = UNSTATED
    """What the source states about actions and rewards."""


@dataclass(frozen=True, kw_only=True)
class DemoArrays:
    """Everything in a store as plain arrays, S steps in E episodes: what is put into Ray's object store."""

    obs: FloatArray
    """[S, O]"""
    actions: FloatArray
    """[S, A]"""
    rewards: FloatArray
    """[S] in the units of the task that they were converted for; NaN where they are unknown."""
    episode_starts: npt.NDArray[np.int64]
    """[E + 1] first step of each episode, and S."""
    held_out: npt.NDArray[np.bool_]
    """[E] kept out of training."""
    info: DemoInfo
    final_obs: FloatArray = None  # type: ignore[assignment]
    """[E, O] observation after the last action; a row of NaN where it is unknown (the default)."""
    terminated: npt.NDArray[np.int8] = None  # type: ignore[assignment]
    """[E] 1 where the task ended the episode, 0, or -1 where it is unknown (the default)."""
    success: npt.NDArray[np.int8] = None  # type: ignore[assignment]
    """[E] 1, 0, or -1 where it is unknown (the default)."""
    images: Mapping[str, npt.NDArray[np.uint8]] = dataclasses.field(default_factory=dict)
    """Key to pictures [S, height, width, channels]."""

    def __post_init__(self) -> None:
        episodes = len(self.held_out)
        unknown = {
            "final_obs": lambda: np.full((episodes, self.obs.shape[1]), np.nan, np.float32),
            "terminated": lambda: np.full(episodes, -1, np.int8),
            "success": lambda: np.full(episodes, -1, np.int8),
        }
        for name, make in unknown.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, make())

    @property
    def unknown_rewards(self) -> npt.NDArray[np.bool_]:
        """[E] the rewards of a step or more are unknown."""
        return np.logical_or.reduceat(np.isnan(self.rewards), self.episode_starts[:-1])

    def require_rewards(self, who: str) -> None:
        """Refuse training episodes whose rewards are unknown: learned from as zeros, they would be worthless.

        Args:
            who: learns from them.

        Raises:
            InrilError: there are some.
        """
        unknown, train = self.unknown_rewards, ~self.held_out
        if (unknown & train).any():
            raise InrilError(
                f"{who} learns from the rewards of demonstrations; those of {int((unknown & train).sum())} of "
                f"{int(train.sum())} training episodes in {self.info.source_file} are unknown, or not in the task's "
                "units. Take a file that has them (inril demos inspect FILE --task TASK tells), or an algorithm that "
                "only imitates demonstrations, such as dppo."
            )

    def size_bytes(self) -> int:
        """Bytes in arrays."""
        fields = [getattr(self, f.name) for f in dataclasses.fields(self)]
        return sum(v.nbytes for v in [*fields, *self.images.values()] if isinstance(v, np.ndarray))

    def hash_content(self) -> str:
        """Return the SHA-256 of the arrays, with their names, types and shapes."""
        digest = hashlib.sha256()
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        named.update({IMAGES + key: self.images[key] for key in sorted(self.images)})
        for name, value in named.items():
            if isinstance(value, np.ndarray):
                digest.update(f"{name} {value.dtype} {value.shape}".encode())
                digest.update(np.ascontiguousarray(value).reshape(-1).data)
        return digest.hexdigest()
