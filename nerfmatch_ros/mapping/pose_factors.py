"""What is known of poses apart from pictures: absolute poses, motions, which way is up.

Each factor gives residuals in standard deviations, and their derivatives by the perturbations of
the poses it speaks of: position (metres), then rotation (radians), both along the map's axes, as
in geometry/pose.py. Letters: R, p = rotation and position of map_from_camera.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.spatial.transform import Rotation


@dataclass(frozen=True, eq=False)
class LinearFactors:
    """F factors around given poses; each speaks of one pose, or of two."""

    residual: np.ndarray  # (F, D) standard deviations
    first: np.ndarray  # (F,) int64, the pose that `first_jacobian` is the derivative by
    first_jacobian: np.ndarray  # (F, D, 6)
    second: np.ndarray | None = None  # (F,) int64
    second_jacobian: np.ndarray | None = None  # (F, D, 6)


class PoseFactors(Protocol):
    """Factors of one kind."""

    # Of residuals' lengths, beyond which they count less and less (Cauchy); inf: squares.
    loss_scale: float

    def linearise(self, poses: np.ndarray) -> LinearFactors:
        """Give residuals and derivatives around poses (K, 4, 4)."""


@dataclass(frozen=True, eq=False)
class AbsolutePoses:
    """Measured poses: residual (p - p', log(R R'^T))."""

    index: np.ndarray  # (F,) int64, of the pose
    poses: np.ndarray  # (F, 4, 4) map_from_camera
    sigma: np.ndarray  # (F, 2) metres, radians
    loss_scale: float = np.inf

    def linearise(self, poses: np.ndarray) -> LinearFactors:
        """Give residuals (F, 6) and derivatives around poses (K, 4, 4)."""
        now = poses[self.index]
        turn = _log(now[:, :3, :3] @ self.poses[:, :3, :3].transpose(0, 2, 1))
        weight = np.repeat(1 / self.sigma, 3, axis=1)
        residual = np.concatenate((now[:, :3, 3] - self.poses[:, :3, 3], turn), axis=1)
        jacobian = np.zeros((len(now), 6, 6))
        jacobian[:, :3, :3] = np.eye(3)
        jacobian[:, 3:, 3:] = _left_jacobian_inverse(turn)
        return LinearFactors(weight * residual, self.index, weight[:, :, None] * jacobian)


@dataclass(frozen=True, eq=False)
class Motions:
    """Measured motions M = (R', t'), the second camera in the first: odometry, closures.

    Residual (R_1^T (p_2 - p_1) - t', log(R'^T R_1^T R_2)), in the axes of the first and of the
    second camera.
    """

    first: np.ndarray  # (F,) int64
    second: np.ndarray  # (F,) int64
    motions: np.ndarray  # (F, 4, 4) first_from_second
    sigma: np.ndarray  # (F, 2) metres, radians
    loss_scale: float = np.inf

    def linearise(self, poses: np.ndarray) -> LinearFactors:
        """Give residuals (F, 6) and derivatives around poses (K, 4, 4)."""
        first, second = poses[self.first], poses[self.second]
        back = first[:, :3, :3].transpose(0, 2, 1)
        baseline = second[:, :3, 3] - first[:, :3, 3]
        turn = _log(self.motions[:, :3, :3].transpose(0, 2, 1) @ back @ second[:, :3, :3])
        moved = (back @ baseline[..., None])[..., 0] - self.motions[:, :3, 3]
        weight = np.repeat(1 / self.sigma, 3, axis=1)
        by_second = np.zeros((len(first), 6, 6))
        by_second[:, :3, :3] = back
        by_second[:, 3:, 3:] = _left_jacobian_inverse(-turn) @ second[:, :3, :3].transpose(0, 2, 1)
        by_first = -by_second
        by_first[:, :3, 3:] = back @ hat(baseline)
        return LinearFactors(
            weight * np.concatenate((moved, turn), axis=1), self.first,
            weight[:, :, None] * by_first, self.second, weight[:, :, None] * by_second)


@dataclass(frozen=True, eq=False)
class Upright:
    """Measured directions of the map's z axis: residual R R'^T z - z, x and y of it."""

    index: np.ndarray  # (F,) int64
    poses: np.ndarray  # (F, 4, 4) map_from_camera, right about x and y
    sigma: float  # radians
    loss_scale: float = np.inf

    def linearise(self, poses: np.ndarray) -> LinearFactors:
        """Give residuals (F, 2) and derivatives around poses (K, 4, 4)."""
        now = poses[self.index]
        up = (now[:, :3, :3] @ self.poses[:, 2, :3][..., None])[..., 0]
        jacobian = np.zeros((len(now), 2, 6))
        jacobian[:, :, 3:] = -hat(up)[:, :2]
        return LinearFactors(up[:, :2] / self.sigma, self.index, jacobian / self.sigma)


@dataclass(frozen=True, eq=False)
class Weakened:
    """Factors with standard deviations `by` times as large: they fix little but a frame."""

    factors: PoseFactors
    by: float
    loss_scale: float = np.inf

    def linearise(self, poses: np.ndarray) -> LinearFactors:
        """Give residuals and derivatives around poses (K, 4, 4)."""
        linear = self.factors.linearise(poses)
        second = linear.second_jacobian
        return replace(linear, residual=linear.residual / self.by,
                       first_jacobian=linear.first_jacobian / self.by,
                       second_jacobian=None if second is None else second / self.by)


def hat(vectors: np.ndarray) -> np.ndarray:
    """Give the matrices (..., 3, 3) of vectors (..., 3) with hat(a) @ b = a x b."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    return np.stack((zero, -z, y, z, zero, -x, -y, x, zero), axis=-1).reshape(*x.shape, 3, 3)


def _log(rotations: np.ndarray) -> np.ndarray:
    if not len(rotations):
        return np.zeros((0, 3))
    return Rotation.from_matrix(rotations).as_rotvec()


def _left_jacobian_inverse(turn: np.ndarray) -> np.ndarray:
    """Give J (F, 3, 3) with log(exp(w) exp(turn)) = turn + J w for small w."""
    angle = np.linalg.norm(turn, axis=-1)
    small = angle < 1e-3
    safe = np.where(small, 1.0, angle)
    factor = np.where(small, 1 / 12, (1 - safe / 2 / np.tan(safe / 2)) / safe ** 2)
    cross = hat(turn)
    return np.eye(3) - cross / 2 + factor[:, None, None] * (cross @ cross)
