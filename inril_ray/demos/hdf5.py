"""Reading and writing HDF5 without trusting it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from inril_ray.demos.causes import HDF5, beginning, cause, description, explained
from inril_ray.demos.episodes import DAMAGE, DemoError

MAX_INFLATION = 1100
"""No filter of HDF5 makes more bytes out of one: deflate, the strongest, reaches 1032."""


def open_hdf5(path: Path) -> Any:
    """Open a file for reading.

    Raises:
        DemoError: it is no HDF5 file, it is not complete, or it can't be read; says why.
    """
    if reason := cause(path):
        raise DemoError(path, reason)
    try:
        if not path.is_file():
            raise DemoError(path, "is a directory, not an HDF5 file.")
        if not h5py.is_hdf5(path) and not beginning(path).startswith(HDF5):
            raise DemoError(path, f"is not an HDF5 file: {description(path)}.")
        file = h5py.File(path, "r")
        try:
            _stay_inside(path, file)
        except BaseException:
            file.close()
            raise
    except DAMAGE as error:
        raise DemoError(path, explained(path, error)) from None
    return file


def top(path: Path) -> list[tuple[str, bool]]:
    """Return the names at the top of an HDF5 file, each with True for a group; nothing for what is no such file."""
    if not path.is_file() or not h5py.is_hdf5(path):
        return []
    try:
        with h5py.File(path, "r") as file:
            return [(str(name), file.get(name, getclass=True) is h5py.Group) for name in file]
    except DAMAGE:
        return []


def _stay_inside(path: Path, file: Any) -> None:
    """Refuse a file that has its content in other ones: HDF5 would follow it to whatever the user may read.

    Raises:
        DemoError: a link or an array leads outside; names it.
    """

    def link(name: str, found: Any) -> str | None:
        return name if isinstance(found, h5py.ExternalLink) else None

    def node(name: str, found: Any) -> str | None:
        return name if isinstance(found, h5py.Dataset) and (found.is_virtual or found.external) else None

    if name := file.visititems_links(link):
        raise DemoError(path, "is a link to another file, which is not followed.", field=name)
    if name := file.visititems(node):
        raise DemoError(path, "has its values in another file, which is not read.", field=name)


def content(path: Path, node: Any, *, episode: str | None, field: str) -> np.ndarray:
    """Return the values of a data set.

    Raises:
        DemoError: it is a group, or its stated size can't be in this file (damaged sizes would fill the memory).
    """
    if not isinstance(node, h5py.Dataset):
        held = f" but a group of {', '.join(node) or 'nothing'}" if isinstance(node, h5py.Group) else ""
        raise DemoError(path, f"is not a data set{held}.", episode=episode, field=field)
    size = int(np.prod(node.shape, dtype=object)) * node.dtype.itemsize
    if size > MAX_INFLATION * path.stat().st_size:
        raise DemoError(path, f"states {size} bytes, more than the file can hold.", episode=episode, field=field)
    return np.asarray(node[()])


def text(value: Any) -> str | None:
    """Return a string that HDF5 may hold as bytes; None for anything else."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else None


@contextlib.contextmanager
def written(path: Path) -> Iterator[Any]:
    """Give a new file to write into, which appears under its name only when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with h5py.File(partial, "w", track_order=False) as file:
            yield file
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def put(group: Any, name: str, array: Any) -> None:
    """Write a compressed data set. Timestamps are left out, so the same arrays give the same bytes."""
    group.create_dataset(name, data=array, compression="gzip", compression_opts=9, shuffle=True)
