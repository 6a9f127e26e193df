"""Names to classes, lazily.

Every plug-in package holds one table ``NAME -> "module:attribute"``. Resolving a name imports only the module that it
names, so a learner-only node never loads a simulator and ``--help`` loads nothing heavy.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from inril_ray.types import InrilError


def resolve(table: Mapping[str, str], name: str, kind: str) -> Any:
    """Return what ``table[name]`` points to.

    Args:
        table: name to ``"module:attribute"``.
        name: what the user asked for.
        kind: singular noun for the error message, such as ``"algorithm"``.

    Raises:
        InrilError: the name is not in the table; the message lists the choices and the nearest one.
    """
    if name not in table:
        near = get_close_matches(name, table, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InrilError(f"Unknown {kind} {name!r}.{hint} Choose one of: {', '.join(sorted(table))}.")
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)
