"""Rotations against SciPy's, in numpy and in torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from inril_ray import rotations

RANDOM = Rotation.random(200, random_state=0)
SPECIAL = Rotation.from_rotvec(
    [[0, 0, 0], [1e-9, 0, 0], [math.pi, 0, 0], [0, math.pi, 0], [0, 0, math.pi], [2.2214, 2.2214, 0], [0, 3.1415, 0]]
)
ALL = Rotation.concatenate([RANDOM, SPECIAL])


def both(function: Any, *arrays: np.ndarray) -> np.ndarray:
    """Call with numpy and with torch; the results must agree."""
    result = function(*arrays)
    same = function(*(torch.from_numpy(a) for a in arrays))
    np.testing.assert_allclose(result, same.numpy(), atol=1e-12)
    return result


def test_quaternions_and_matrices() -> None:
    np.testing.assert_allclose(both(rotations.matrix_of_quat, ALL.as_quat()), ALL.as_matrix(), atol=1e-12)
    found = both(rotations.quat_of_matrix, ALL.as_matrix())
    assert (found[:, 3] >= 0).all()
    np.testing.assert_allclose(Rotation.from_quat(found).as_matrix(), ALL.as_matrix(), atol=1e-12)


def test_products() -> None:
    other = Rotation.random(len(ALL), random_state=1)
    found = both(rotations.multiply_quats, ALL.as_quat(), other.as_quat())
    np.testing.assert_allclose(Rotation.from_quat(found).as_matrix(), (ALL * other).as_matrix(), atol=1e-12)


def test_vectors() -> None:
    found = both(rotations.rotation_vector, ALL.as_matrix())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), ALL.magnitude(), atol=1e-9)
    np.testing.assert_allclose(Rotation.from_rotvec(found).as_matrix(), ALL.as_matrix(), atol=1e-9)
    np.testing.assert_allclose(both(rotations.matrix_of_vector, ALL.as_rotvec()), ALL.as_matrix(), atol=1e-12)


def test_two_rows_need_be_neither_unit_nor_orthogonal() -> None:
    matrix = ALL.as_matrix()
    six = both(rotations.six_of_matrix, matrix)
    np.testing.assert_array_equal(six, np.concatenate([matrix[:, 0], matrix[:, 1]], axis=1))
    six = np.concatenate([3.0 * six[:, :3], 0.5 * six[:, 3:] + 0.7 * six[:, :3]], axis=1)
    np.testing.assert_allclose(both(rotations.matrix_of_6d, six), matrix, atol=1e-12)


@pytest.mark.parametrize("six", [np.zeros(6), np.array([1.0, 0, 0, 2.0, 0, 0])])
def test_what_is_no_rotation_stays_finite(six: np.ndarray) -> None:
    assert np.isfinite(rotations.matrix_of_6d(six[None])).all()


def test_any_shape_and_precision() -> None:
    matrix = ALL.as_matrix()[:6].reshape(2, 3, 3, 3).astype(np.float32)
    quat = rotations.quat_of_matrix(matrix)
    assert quat.shape == (2, 3, 4)
    assert quat.dtype == np.float32
    np.testing.assert_allclose(rotations.matrix_of_quat(quat), matrix, atol=1e-6)
