"""Pickles of unknown origin, read without running what they bring along.

A pickle is a program for a small machine that may call any function it names. Here names are looked up in a short
table, so numbers, text, containers and plain numeric arrays can be made, and nothing else.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np


class SafeUnpickler(pickle._Unpickler):
    """Unpickler that can make numbers, text, containers and plain numeric arrays, and nothing else.

    Names in a pickle are looked up here, never imported, so no function of a file's choice is called. numpy's own
    constructors are replaced, too: given a type that lies about what it holds, they would take bytes for addresses.

    It is pickle's own in Python, not the one in C: that makes its memo as long as the greatest index in the file, so
    five bytes (LONG_BINPUT) take 32 GB.
    """

    def load(self) -> Any:
        """Return what the pickle holds.

        Raises:
            pickle.UnpicklingError: it is damaged or asks for more than is read; other errors are such as bytes that lie
                lead to (see ``DAMAGE`` of :mod:`inril_ray.demos.episodes`).
        """
        try:
            return super().load()
        except (struct.error, AssertionError) as error:
            raise pickle.UnpicklingError(f"it is cut short or damaged ({error})") from None

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a constructor.

        Raises:
            pickle.UnpicklingError: it is not one of those that the recordings need.
        """
        make = CONSTRUCTORS.get((module.replace("numpy._core", "numpy.core"), name))
        if make is None:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}; only numbers, text, containers and numeric numpy arrays are read"
            )
        return _Constructor(make)


class _Constructor:
    """What a pickle gets for a name: it can be called, and has nothing that the pickle could change."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a constructor")


class _Dtype:
    """A numeric type: its letter and size, and the byte order that comes as its state."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[<>=|]?([biuf][1248]|U\d{1,4})", code):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}; numbers are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"it holds an array with the byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array that takes its content only from as many bytes as its shape needs."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it holds an array that is not made of bytes")
        if len(content) != math.prod(shape) * dtype.dtype.itemsize:
            raise pickle.UnpicklingError(f"it holds an array of shape {shape} in {len(content)} bytes")
        super().__setstate__((1, shape, dtype.dtype, bool(column_major), content))


def _empty_array(*_: Any) -> _Array:
    return _Array((0,), np.uint8)


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    values = np.frombuffer(content, dtype.dtype)
    if len(values) != 1:
        raise pickle.UnpicklingError(f"it holds {len(values)} numbers where one is stated")
    return values[0]


def _array_of_buffer(content: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(content, dtype.dtype).reshape(shape, order="F" if order == "F" else "C")


def _latin1(text: str, _: str) -> bytes:
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""  # how the older protocols write it


CONSTRUCTORS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _empty_array,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array_of_buffer,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): dict,
    **{
        (module, name): make
        for module in ("builtins", "__builtin__")
        for name, make in (("set", set), ("frozenset", frozenset), ("bytes", _no_bytes))
    },
}
"""Module and name in a pickle to what makes the object. ``numpy.core`` is ``numpy._core`` from numpy 2 on."""
