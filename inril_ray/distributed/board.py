"""Where a learner on another machine writes how far it is, and its driver looks: Ray's own table of the cluster.

An actor that works answers no calls, so there is no asking it.
"""

from __future__ import annotations

import json

from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put


class Board:
    """What one process tells another of its phases; see :data:`inril_ray.progress.Listener`.

    Args:
        name: of both, and of nobody else.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Write how far a phase is."""
        _internal_kv_put(self._key(), json.dumps([phase, done, total]).encode())

    def read(self) -> tuple[str, int, int] | None:
        """Return what was written last, None if nothing was."""
        found = _internal_kv_get(self._key())
        return tuple(json.loads(found)) if found else None

    def clear(self) -> None:
        """Remove it from the cluster."""
        _internal_kv_del(self._key())

    def _key(self) -> bytes:
        return f"inril progress {self.name}".encode()
