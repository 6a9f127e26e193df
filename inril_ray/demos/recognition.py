"""Which reader a path belongs to, or why none can read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py

from inril_ray.demos import FORMATS
from inril_ray.demos.causes import HDF5, NAMES, beginning, cause, description
from inril_ray.demos.episodes import DemoError
from inril_ray.demos.hdf5 import open_hdf5, top
from inril_ray.registry import resolve

HDF5_LAYOUTS = "robomimic's files have a group data, D4RL's arrays observations, actions and terminals"


def recognise(path: Path) -> Any:
    """Return the reader for a file or a directory.

    Raises:
        DemoError: it can't be read, or no format recognises it; says what it is.
    """
    if reason := cause(path):
        raise DemoError(path, reason)
    content = description
    if path.is_file() and (_claims_hdf5(path) or h5py.is_hdf5(path)):
        open_hdf5(path).close()
        content = _hdf5
    for name in FORMATS:
        reader = resolve(FORMATS, name, "demonstration format")
        if reader.recognises(path):
            return reader
    raise DemoError(path, f"is none of the known formats ({', '.join(FORMATS)}): {content(path)}.")


def _claims_hdf5(path: Path) -> bool:
    return path.suffix in (".hdf5", ".h5") or beginning(path).startswith(HDF5)


def _hdf5(path: Path) -> str:
    found = [f"{name} (a {'group' if group else 'data set'})" for name, group in top(path)]
    held = ", ".join(found[:NAMES]) + (", …" if len(found) > NAMES else "")
    return f"it is HDF5 that holds {held or 'nothing'}; {HDF5_LAYOUTS}"
