"""Columns of Arrow and Parquet files as plain arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def matrix(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Return a column of numbers as [N], or a column of lists of equal length as [N, W].

    Numbers in one chunk are not copied: the result is a read-only view.

    Raises:
        ValueError: values are missing, or lists differ in length.
    """
    array = column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()
    if array.null_count:
        raise ValueError(f"{array.null_count} values are missing")
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        widths = np.diff(array.offsets.to_numpy())
        if len(np.unique(widths)) > 1:
            raise ValueError(f"rows differ in length: {widths.min()} to {widths.max()}")
        return _numbers(array.flatten()).reshape(len(array), -1)
    if pa.types.is_fixed_size_list(array.type):
        return _numbers(array.flatten()).reshape(len(array), array.type.list_size)
    return _numbers(array)


def _numbers(array: pa.Array) -> np.ndarray:
    if array.null_count:
        raise ValueError(f"{array.null_count} values are missing")
    plain = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
    return array.to_numpy(zero_copy_only=plain)
