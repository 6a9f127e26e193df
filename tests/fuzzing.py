"""How many cases property-based tests generate, few in `make test`, thousands in `make fuzz`, and what of."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FACTOR = int(os.environ.get("INRIL_FUZZ", "1"))
"""Multiplies the cases of every test; above 1 they differ from run to run."""

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    words,
    st.sampled_from(
        ["robomimic/lift", "dppo", "upgrad", "adaptive", "../../etc/passwd", "~", "1e-3", "nan", "off", ""]
    ),
)
values = st.recursive(plain, lambda v: st.lists(v, max_size=3) | st.dictionaries(words, v, max_size=3), max_leaves=6)


def paths_of(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every node of nested mappings and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [prefix, *(path for key, value in items for path in paths_of(value, (*prefix, key)))]


edits = st.lists(
    st.tuples(st.integers(0, 10**6), st.booleans(), plain | st.sampled_from(["{}", "[]", "array"])),
    min_size=1,
    max_size=3,
)
"""Of a tree: where, whether something is taken away or replaced, and by what."""


def spoil(tree: Any, changes: list[tuple[int, bool, Any]], *, arrays: bool = False) -> Any:
    """Make ``edits`` in a tree; return it."""
    for place, removes, value in changes:
        paths = [path for path in paths_of(tree) if path]
        if not paths:
            break
        *above, last = paths[place % len(paths)]
        parent = tree
        for key in above:
            parent = parent[key]
        if removes:
            del parent[last]
        else:
            array = np.zeros((2, 0)) if arrays else 7
            parent[last] = {"{}": {}, "[]": [], "array": array}.get(value, value) if isinstance(value, str) else value
    return tree


def cases(number: int) -> Any:
    """Return the settings of a property-based test that generates so many cases, or a multiple of them."""

    def decorate(test: Any) -> Any:
        chosen = settings(
            max_examples=number * FACTOR,
            derandomize=FACTOR == 1,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        return pytest.mark.fuzz(chosen(test))

    return decorate
