"""Demonstrations in Ray's object store: one copy on each node, read by every process of it without copying."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError

from inril_ray.demos.store import DemoArrays
from inril_ray.types import InrilError


class DemoService:
    """Owns the one copy of a run's demonstrations. Lives in the driver, so the copy lives as long as the run.

    Args:
        arrays: put into the store once. Ray copies the object to a node when a process there first asks for it.
    """

    def __init__(self, arrays: DemoArrays) -> None:
        self.size_bytes = arrays.size_bytes()
        self.content_hash = arrays.info.content_hash
        self.handle: list[Any] = [ray.put(arrays)]
        """[reference]; inside a list, so that passing it to an actor does not fetch it."""


def fetch(handle: list[Any], timeout_s: float = 60.0) -> DemoArrays:
    """Return the demonstrations as read-only views of this node's copy.

    Raises:
        InrilError: they did not arrive in time, or their owner is gone.
    """
    try:
        return ray.get(handle[0], timeout=timeout_s)
    except RayError as error:
        raise InrilError(f"The demonstration store did not answer within {timeout_s:.0f} s: {error}") from None
