"""How far a long phase is, told to whoever shows it: a console, or the driver of the process that works."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
Listener = Callable[[str, int, int], None]
"""(name of the phase, steps done, steps in all); equal numbers end it."""
EVERY_S = 0.5
"""Between two reports of a phase."""
_listeners: list[Listener] = []


@contextlib.contextmanager
def told_to(listener: Listener) -> Iterator[None]:
    """Tell a listener of the phases of this process, instead of the one before it."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell_from_now_on(listener: Listener) -> None:
    """Tell a listener of the phases of this process, to its end."""
    _listeners.append(listener)


def tell(phase: str, done: int, total: int) -> None:
    """Say how far a phase is; without a listener nothing happens."""
    if _listeners:
        _listeners[-1](phase, done, total)


def steps(items: Iterable[T], phase: str, total: int) -> Iterator[T]:
    """Yield the items of a phase, and tell now and then how many are done."""
    last = -EVERY_S
    for done, item in enumerate(items):
        if time.monotonic() - last >= EVERY_S:
            tell(phase, done, total)
            last = time.monotonic()
        yield item
    tell(phase, total, total)
