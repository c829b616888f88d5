"""What a camera's calibration leaves of its lens: found beside the poses, so as not to bend them.

A fraction of a pixel of radial distortion that a calibration misses makes an adjustment bend whole
trajectories. Here a ray at the angle a from the optical axis is taken for one at
a (1 + k1 a^2 + k2 a^4); k1 and k2 are the same for all photographs of a camera. The cameras
themselves stay as they are given.

What is known of the poses must hardly count while k1 and k2 are found: where no loop is closed,
they would take up what odometry does wrong. And they count only where they are significant.
"""

from dataclasses import dataclass, replace
import math

from nerfmatch_ros.mapping.bundle_adjustment import (
    directions,
    influence_of,
    linearise,
    moved,
    NormalEquations,
    Observations,
    solve_damped,
)
from nerfmatch_ros.mapping.pose_factors import PoseFactors
from nerfmatch_ros.mapping.ray_intersection import sum_by
import numpy as np

TERMS = 2  # k1, k2
_PRIOR = np.array([0.02, 0.02])  # standard deviations of k1, k2; what a calibration may miss
_DAMPING = 1e-9
_SIGNIFICANT = 5.0  # standard deviations, of terms that are no chance


@dataclass(frozen=True, eq=False)
class LensCorrection:
    """Corrections of G cameras."""

    camera: np.ndarray  # (K,) int64, which of them took image k
    terms: np.ndarray  # (G, 2) k1 and k2
    covariance: np.ndarray | None = None  # (2 G, 2 G) of the terms, if they were found

    @staticmethod
    def none(camera: np.ndarray) -> 'LensCorrection':
        """Begin at calibrations that are right."""
        camera = np.asarray(camera, np.int64)
        return LensCorrection(camera, np.zeros((int(camera.max(initial=0)) + 1, TERMS)))

    def apply(self, rays: np.ndarray, image: np.ndarray) -> np.ndarray:
        """Give the true directions of rays (M, 3), unit, camera frame, seen in images (M,)."""
        angle, outwards = _polar(rays)
        k = self.terms[self.camera[image]]
        turned = angle * (1 + k[:, 0] * angle ** 2 + k[:, 1] * angle ** 4)
        turned = np.clip(turned, 0, np.pi)[:, None]
        axis = np.array([0.0, 0.0, 1.0])
        return np.sin(turned) * outwards + np.cos(turned) * axis

    def significant(self) -> 'LensCorrection':
        """Keep the terms of cameras where they are no chance; those of the others become 0."""
        terms = np.zeros_like(self.terms)
        for number, found in enumerate(self.terms):
            own = slice(TERMS * number, TERMS * (number + 1))
            deviations = math.sqrt(found @ np.linalg.solve(self.covariance[own, own], found))
            if deviations > _SIGNIFICANT:
                terms[number] = found
        return replace(self, terms=terms)

    def largest(self, rays: np.ndarray, image: np.ndarray) -> float:
        """Give the largest correction of rays (M, 3), radians."""
        if not len(rays):
            return 0.0
        return float(np.linalg.norm(self.apply(rays, image) - rays, axis=-1).max())


def corrected(
    correction: LensCorrection, poses: np.ndarray, points: np.ndarray,
    observations: Observations, factors: list[PoseFactors], *, loss_scale: float,
) -> tuple[LensCorrection, np.ndarray, np.ndarray]:
    """Give a better correction, and poses and points that go with it; one Newton step.

    poses, points: adjusted to the observations, whose rays are corrected by `correction` already.
    At such a minimum the poses and points follow the correction, and so the step is that of the
    cost reduced by them (variable projection, Golub and Pereyra, 1973).
    """
    order = np.argsort(observations.image, kind='stable')
    observations = observations.chosen(order)
    normal = linearise(poses, points, observations, factors, loss_scale, 6)
    u, w, distance = directions(poses, points, observations)
    residual = (u - w) / observations.sigma[:, None]
    weight = influence_of((residual ** 2).sum(-1), loss_scale)[:, None]
    by_term = _derivatives(poses, observations)
    cameras, count = correction.camera[observations.image], len(correction.terms)
    size = TERMS * count
    hessian = np.diag(np.tile(1 / _PRIOR ** 2, count))
    gradient = (correction.terms / _PRIOR ** 2).reshape(-1)
    follow_poses, follow_points = np.zeros((size, len(poses), 6)), np.zeros((size, *points.shape))
    follow = np.zeros((size, size))
    columns = []
    for number in range(size):
        camera, term = divmod(number, TERMS)
        columns.append(np.where((cameras == camera)[:, None], by_term[:, term], 0.0))
    for number, column in enumerate(columns):
        coupled = _coupling(normal, poses, points, observations, weight * column, u, distance)
        follow_poses[number], follow_points[number] = solve_damped(coupled, _DAMPING)
        change = _moved_residuals(follow_poses[number], follow_points[number], u, distance,
                                  observations)
        gradient[number] += (weight * column * residual).sum()
        for other, partner in enumerate(columns):
            follow[other, number] = (weight * partner * (column + change)).sum()
    if not np.isfinite(follow).all():
        return correction, poses, points
    covariance = np.linalg.inv(hessian + (follow + follow.T) / 2)
    step = -covariance @ gradient
    terms = correction.terms + step.reshape(count, TERMS)
    return (LensCorrection(correction.camera, terms, covariance),
            moved(poses, np.tensordot(step, follow_poses, 1)),
            points + np.tensordot(step, follow_points, 1))


def _polar(rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the angle (M,) of rays from the optical axis, and outwards (M, 3) across it."""
    across = np.hypot(rays[:, 0], rays[:, 1])
    outwards = rays / np.maximum(across, 1e-12)[:, None]
    outwards[:, 2] = 0
    return np.arctan2(across, rays[:, 2]), outwards


def _derivatives(poses: np.ndarray, observations: Observations) -> np.ndarray:
    """Differentiate residuals by k1 and k2: (M, 2, 3), map axes."""
    angle, outwards = _polar(observations.rays)
    tangent = np.cos(angle)[:, None] * outwards
    tangent[:, 2] = -np.sin(angle)
    turned = (poses[observations.image][:, :3, :3] @ tangent[..., None])[..., 0]
    powers = np.stack([angle ** 3, angle ** 5], axis=-1)
    return -powers[..., None] * turned[:, None] / observations.sigma[:, None, None]


def _across(u: np.ndarray) -> np.ndarray:
    return np.eye(3) - u[:, :, None] * u[:, None, :]


def _coupling(
    normal: NormalEquations, poses: np.ndarray, points: np.ndarray, observations: Observations,
    pulled: np.ndarray, u: np.ndarray, distance: np.ndarray,
) -> NormalEquations:
    """Give the normal equations with what a term pulls at (M, 3) instead of the residuals."""
    scaled = (distance * observations.sigma)[:, None]
    by_point = (_across(u) @ pulled[..., None])[..., 0] / scaled
    turned = np.cross(pulled, u) / observations.sigma[:, None]
    gradient = np.concatenate([-by_point, turned], axis=-1)
    return replace(
        normal, pose_gradient=sum_by(gradient, observations.image, len(poses)),
        point_gradient=sum_by(by_point, observations.point, len(points)))


def _moved_residuals(
    pose_step: np.ndarray, point_step: np.ndarray, u: np.ndarray, distance: np.ndarray,
    observations: Observations,
) -> np.ndarray:
    """Give how residuals (M, 3) move with poses (K, 6) and points (P, 3)."""
    scaled = (distance * observations.sigma)[:, None]
    step = pose_step[observations.image]
    apart = point_step[observations.point] - step[:, :3]
    shifted = (_across(u) @ apart[..., None])[..., 0] / scaled
    return shifted + np.cross(u, step[:, 3:]) / observations.sigma[:, None]
