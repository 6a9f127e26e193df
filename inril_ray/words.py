"""Numbers and errors in the words of a message."""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """Return the first line of what an exception says, without the name of its class: ``Is a directory``."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]} is missing"
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__


def counted(number: float, plural: str) -> str:
    """Return a count with its noun, which is given as of several: ``1 seed``, ``3 seeds``."""
    return f"{number:.0f} {plural.removesuffix('s') if number == 1 else plural}"


def duration(seconds: float) -> str:
    """Return a time: ``80 s``, ``12 min``, ``3.4 h``."""
    if seconds < 90.0:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400.0 else f"{seconds / 3600:.1f} h"
