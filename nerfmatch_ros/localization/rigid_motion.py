"""Rigid motions of one body in numpy, for arithmetic that runs hundreds of times for a frame.

The conventions are those of geometry/pose.py, which does the same for batches of tensors; a
single 4x4 is ten times faster here. Matrices are (4, 4) float64 and named `target_from_source`.
"""

import math

import numpy as np

_ROTATION_TOLERANCE = 1e-4  # of R^T R; a quaternion in single precision stays far below


def inverse(pose: np.ndarray) -> np.ndarray:
    """Invert a pose (4, 4) by transposing its rotation."""
    result = np.eye(4)
    result[:3, :3] = pose[:3, :3].T
    result[:3, 3] = -(result[:3, :3] @ pose[:3, 3])
    return result


def hat(vector: np.ndarray) -> np.ndarray:
    """Make the cross-product matrix (3, 3) of a vector (3,): hat(a) @ b = a x b."""
    x, y, z = vector.tolist()
    return np.array(((0.0, -z, y), (z, 0.0, -x), (-y, x, 0.0)))


def rotation_exp(vector: np.ndarray) -> np.ndarray:
    """Give the rotation (3, 3) of a rotation vector (3,), radians."""
    x, y, z = vector.tolist()
    angle = math.sqrt(x * x + y * y + z * z)
    half = angle / 2
    # The quaternion (w, s * vector); sin(angle / 2) / angle tends to 1 / 2.
    w, s = math.cos(half), math.sin(half) / angle if angle > 1e-12 else 0.5
    x, y, z = s * x, s * y, s * z
    return np.array((
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y))))


def rotation_log(rotation: np.ndarray) -> np.ndarray:
    """Give the rotation vector (3,), radians, at most pi long, of a rotation (3, 3)."""
    (a, b, c), (d, e, f), (g, h, i) = rotation.tolist()
    # A multiple of the quaternion, from the row of its outer product with the largest diagonal.
    diagonals = (1 + a + e + i, 1 + a - e - i, 1 - a + e - i, 1 - a - e + i)
    largest = diagonals.index(max(diagonals))
    if largest == 0:
        w, x, y, z = diagonals[0], h - f, c - g, d - b
    elif largest == 1:
        w, x, y, z = h - f, diagonals[1], d + b, c + g
    elif largest == 2:
        w, x, y, z = c - g, d + b, diagonals[2], h + f
    else:
        w, x, y, z = d - b, c + g, h + f, diagonals[3]
    if w < 0:
        w, x, y, z = -w, -x, -y, -z
    length = math.sqrt(x * x + y * y + z * z)
    scale = 2 * math.atan2(length, w) / length if length > 0 else 0.0
    return np.array((scale * x, scale * y, scale * z))


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Give the delta (6,) that moves the pose first to second.

    Metres, then radians, both in the axes of the target frame: the convention of a ROS pose
    covariance.
    """
    delta = np.empty(6)
    delta[:3] = second[:3, 3] - first[:3, 3]
    delta[3:] = rotation_log(second[:3, :3] @ first[:3, :3].T)
    return delta


def perturb(pose: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Move a pose (4, 4) by delta (6,): position + delta[:3], then Exp(delta[3:]) @ rotation."""
    result = np.eye(4)
    result[:3, :3] = rotation_exp(delta[3:]) @ pose[:3, :3]
    result[:3, 3] = pose[:3, 3] + delta[:3]
    return result


def distance(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Give the metres and the radians between two poses."""
    x, y, z, *turn = difference(first, second).tolist()
    return math.hypot(x, y, z), math.hypot(*turn)


def is_pose(matrix: np.ndarray) -> bool:
    """Say whether a matrix is a finite rigid motion (4, 4): a rotation, no scale, no mirror."""
    matrix = np.asarray(matrix)
    if matrix.shape != (4, 4) or matrix.dtype.kind not in 'fiu' or not np.isfinite(matrix).all():
        return False
    rotation = matrix[:3, :3].astype(np.float64)
    return bool(
        (matrix[3] == (0, 0, 0, 1)).all()
        and np.abs(rotation.T @ rotation - np.eye(3)).max() < _ROTATION_TOLERANCE
        and np.linalg.det(rotation) > 0)
