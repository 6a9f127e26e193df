"""How many cases property-based tests generate: few in `make test`, thousands in `make fuzz`."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

FACTOR = int(os.environ.get("INRIL_FUZZ", "1"))
"""Multiplies the cases of every test; above 1 they differ from run to run."""


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
