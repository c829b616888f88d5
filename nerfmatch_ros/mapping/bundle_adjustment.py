"""Bundle adjustment on rays: poses and points that photographs and what is known of poses fit.

Levenberg and Marquardt with the points eliminated (Schur complement; Triggs et al., 2000). Any
camera model works, since observations are unit rays. Letters: R, p = rotation and position of
map_from_camera; X = a point; w = R v, an observed ray in the map's axes; u = (X - p) / |X - p|;
residual = (u - w) / sigma, three numbers whose length is the angle between u and w, growing up to
behind the camera. It is differentiated in the camera's axes, where turning the whole scene changes
nothing, and written along the map's. Perturbations of poses: position, then rotation, both along
the map's axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nerfmatch_ros.mapping.pose_factors import hat, LinearFactors, PoseFactors
from nerfmatch_ros.mapping.ray_intersection import sum_by
import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import bsr_array
from scipy.sparse.linalg import splu
from scipy.spatial.transform import Rotation

_DENSE_UP_TO = 400  # poses, whose normal matrix is factored as a dense one
_START_DAMPING = 1e-4  # share of the normal matrix's diagonal
_MOST_DAMPING = 1e8
_NEAREST = 1e-9  # metres from a camera to a point, at least


@dataclass(frozen=True, eq=False)
class Observations:
    """M sightings of P points by K cameras."""

    image: np.ndarray  # (M,) int64, of the camera
    point: np.ndarray  # (M,) int64
    rays: np.ndarray  # (M, 3) unit directions, camera frame
    sigma: np.ndarray  # (M,) radians

    def chosen(self, mask: np.ndarray) -> 'Observations':
        """Keep the sightings of a mask (M,); points keep their numbers."""
        return Observations(self.image[mask], self.point[mask], self.rays[mask], self.sigma[mask])


@dataclass(frozen=True, eq=False)
class BundleResult:
    """Where the adjustment ended."""

    poses: np.ndarray  # (K, 4, 4) float64 map_from_camera
    points: np.ndarray  # (P, 3) map frame, metres
    cost: float  # sum of the losses, half of squares where residuals are small
    steps: int  # that were taken
    converged: bool


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """The normal equations: blocks of poses, of points, and between them."""

    poses: bsr_array  # (K d, K d), blocks (d, d): what is known without the points
    pose_gradient: np.ndarray  # (K, d)
    points: np.ndarray  # (P, 3, 3)
    point_gradient: np.ndarray  # (P, 3)
    between: np.ndarray  # (M, d, 3)
    observations: Observations  # sorted by image, as `between`


def adjust(
    poses: np.ndarray, points: np.ndarray, observations: Observations,
    factors: Sequence[PoseFactors], *, loss_scale: float, rotations_fixed: bool = False,
    max_steps: int = 50, tolerance: float = 1e-6,
) -> BundleResult:
    """Minimise the robust sum of squares from poses (K, 4, 4) and points (P, 3) near the minimum.

    loss_scale: of residuals' lengths in sigmas, beyond which sightings count less and less
    (Cauchy). rotations_fixed: move positions and points only. tolerance: relative decrease of the
    cost that ends the search. The factors must fix all poses together, or the problem has no
    single solution: then damping leaves what is free where it was.
    """
    order = np.argsort(observations.image, kind='stable')
    observations = Observations(observations.image[order], observations.point[order],
                                observations.rays[order], observations.sigma[order])
    size = 3 if rotations_fixed else 6
    damping, cost = _START_DAMPING, _cost(poses, points, observations, factors, loss_scale)
    converged, steps = False, 0
    while steps < max_steps and not converged:
        normal = linearise(poses, points, observations, factors, loss_scale, size)
        improved = False
        while not improved and damping < _MOST_DAMPING:
            pose_step, point_step = solve_damped(normal, damping)
            if not (np.isfinite(pose_step).all() and np.isfinite(point_step).all()):
                damping *= 10
                continue
            new_poses, new_points = moved(poses, pose_step), points + point_step
            new_cost = _cost(new_poses, new_points, observations, factors, loss_scale)
            improved = bool(new_cost <= cost)
            damping = max(damping / 10, 1e-12) if improved else damping * 10
        if not improved:
            break
        converged = cost - new_cost <= tolerance * cost
        poses, points, cost, steps = new_poses, new_points, new_cost, steps + 1
    return BundleResult(poses, points, cost, steps, converged)


def pose_covariances(
    poses: np.ndarray, points: np.ndarray, observations: Observations,
    factors: Sequence[PoseFactors], *, loss_scale: float,
) -> np.ndarray:
    """Give the covariances (K, 6, 6) of adjusted poses: x, y, z, rx, ry, rz along map axes.

    The inverse of the normal matrix without the points, square metres and radians. A pose that
    nothing fixes has infinite variances.
    """
    order = np.argsort(observations.image, kind='stable')
    observations = observations.chosen(order)
    normal = linearise(poses, points, observations, factors, loss_scale, 6)
    schur, _ = _reduced(normal, 1e-12)
    count = len(poses)
    blocks = np.empty((count, 6, 6))
    if count <= _DENSE_UP_TO:
        dense = schur.toarray()
        scale = 1 / np.sqrt(np.maximum(np.diag(dense), 1e-300))
        values, vectors = np.linalg.eigh(dense * np.outer(scale, scale))
        values = np.where(values > 1e-14, values, np.nan)
        scaled = (vectors / values) @ vectors.T * np.outer(scale, scale)
        for k in range(count):
            blocks[k] = scaled[6 * k:6 * k + 6, 6 * k:6 * k + 6]
    else:
        factor = splu(schur.tocsc())
        for k in range(count):
            unit = np.zeros((6 * count, 6))
            unit[6 * k:6 * k + 6] = np.eye(6)
            blocks[k] = factor.solve(unit)[6 * k:6 * k + 6]
    blocks = (blocks + blocks.transpose(0, 2, 1)) / 2
    return np.where(np.isfinite(blocks), blocks, np.inf)


def angular_errors(
    poses: np.ndarray, points: np.ndarray, observations: Observations,
) -> np.ndarray:
    """Give the chords (M,) between seen and expected rays, in sigmas; about their angles."""
    u, w, _ = directions(poses, points, observations)
    return np.linalg.norm(u - w, axis=-1) / observations.sigma


def moved(poses: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Move poses (K, 4, 4) by (K, 3) positions, or (K, 6) positions and rotations, map axes."""
    poses = np.array(poses, np.float64)
    poses[:, :3, 3] += step[:, :3]
    if step.shape[1] == 6:
        poses[:, :3, :3] = Rotation.from_rotvec(step[:, 3:]).as_matrix() @ poses[:, :3, :3]
    return poses


def directions(
    poses: np.ndarray, points: np.ndarray, observations: Observations,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give u (M, 3), w (M, 3) and the distances (M,)."""
    pose = poses[observations.image]
    offset = points[observations.point] - pose[:, :3, 3]
    distance = np.maximum(np.linalg.norm(offset, axis=-1), _NEAREST)
    w = (pose[:, :3, :3] @ observations.rays[..., None])[..., 0]
    return offset / distance[:, None], w, distance


def _loss(square: np.ndarray, scale: float) -> np.ndarray:
    """Give half the Cauchy loss of squared lengths."""
    if not np.isfinite(scale):
        return square / 2
    return scale ** 2 / 2 * np.log1p(square / scale ** 2)


def influence_of(square: np.ndarray, scale: float) -> np.ndarray:
    """Give the weights of squared lengths under the Cauchy loss."""
    return 1 / (1 + square / scale ** 2)


def _cost(
    poses: np.ndarray, points: np.ndarray, observations: Observations,
    factors: Sequence[PoseFactors], loss_scale: float,
) -> float:
    total = _loss(angular_errors(poses, points, observations) ** 2, loss_scale).sum()
    for factor in factors:
        residual = factor.linearise(poses).residual
        total += _loss((residual ** 2).sum(-1), factor.loss_scale).sum()
    return float(total)


def linearise(
    poses: np.ndarray, points: np.ndarray, observations: Observations,
    factors: Sequence[PoseFactors], loss_scale: float, size: int,
) -> NormalEquations:
    """Make the normal equations for perturbations of `size` numbers a pose."""
    count = len(poses)
    u, w, distance = directions(poses, points, observations)
    residual = (u - w) / observations.sigma[:, None]
    weight = influence_of((residual ** 2).sum(-1), loss_scale)
    by_point = (np.eye(3) - u[:, :, None] * u[:, None, :]) \
        / (distance * observations.sigma)[:, None, None]
    by_pose = np.empty((len(u), 3, size))
    by_pose[:, :, :3] = -by_point
    if size == 6:
        by_pose[:, :, 3:] = hat(u) / observations.sigma[:, None, None]
    pulled = weight[:, None, None] * by_pose.transpose(0, 2, 1)
    pose_blocks = sum_by(pulled @ by_pose, observations.image, count)
    pose_gradient = sum_by((pulled @ residual[..., None])[..., 0], observations.image, count)
    pulled_point = weight[:, None, None] * by_point  # symmetric
    rows, columns = [np.arange(count)], [np.arange(count)]
    blocks = [pose_blocks]
    for factor in factors:
        linear = factor.linearise(poses)
        influence = influence_of((linear.residual ** 2).sum(-1), factor.loss_scale)
        for i, a in _sides(linear, size):
            pulled_factor = influence[:, None, None] * a.transpose(0, 2, 1)
            np.add.at(pose_gradient, i, (pulled_factor @ linear.residual[..., None])[..., 0])
            for j, b in _sides(linear, size):
                rows.append(i)
                columns.append(j)
                blocks.append(pulled_factor @ b)
    return NormalEquations(
        _block_matrix(np.concatenate(rows), np.concatenate(columns), np.concatenate(blocks),
                      count), pose_gradient,
        sum_by(pulled_point @ by_point, observations.point, len(points)),
        sum_by((pulled_point @ residual[..., None])[..., 0], observations.point, len(points)),
        pulled @ by_point, observations)


def _sides(linear: LinearFactors, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    sides = [(linear.first, linear.first_jacobian[:, :, :size])]
    if linear.second is not None:
        sides.append((linear.second, linear.second_jacobian[:, :, :size]))
    return sides


def _block_matrix(
    rows: np.ndarray, columns: np.ndarray, blocks: np.ndarray, count: int,
) -> bsr_array:
    """Sum blocks (N, d, d) into a sparse matrix (count d, count d)."""
    place, slot = np.unique(rows * count + columns, return_inverse=True)
    start = np.searchsorted(place, np.arange(count + 1) * count)
    size = blocks.shape[1]
    return bsr_array((sum_by(blocks, slot.reshape(-1), len(place)), place % count, start),
                     shape=(count * size, count * size))


def _reduced(normal: NormalEquations, damping: float) -> tuple[bsr_array, np.ndarray]:
    """Eliminate the points: the Schur complement (K d, K d) and its right side (K d,)."""
    observations = normal.observations
    count, size = normal.pose_gradient.shape
    inverse = _inverted(normal.points, damping)
    through = normal.between @ inverse[observations.point]
    start = np.searchsorted(observations.image, np.arange(count + 1))
    shape = (count * size, 3 * len(normal.points))
    spread = bsr_array((through, observations.point, start), shape=shape)
    between = bsr_array((normal.between, observations.point, start), shape=shape)
    diagonal = normal.poses.diagonal()
    ridge = damping * np.maximum(diagonal, 1e-12 * diagonal.max(initial=1e-300))
    ridge_blocks = np.zeros((count, size, size))
    ridge_blocks[:, np.arange(size), np.arange(size)] = ridge.reshape(count, size)
    each = np.arange(count)
    schur = normal.poses + _block_matrix(each, each, ridge_blocks, count) - spread @ between.T
    right = -normal.pose_gradient.reshape(-1) + spread @ normal.point_gradient.reshape(-1)
    return schur, right


def solve_damped(normal: NormalEquations, damping: float) -> tuple[np.ndarray, np.ndarray]:
    """Give the damped steps of poses (K, d) and points (P, 3); NaN if more damping is needed."""
    schur, right = _reduced(normal, damping)
    count, size = normal.pose_gradient.shape
    if count <= _DENSE_UP_TO:
        dense = schur.toarray()
        try:
            pose_step = cho_solve(cho_factor(dense, lower=True), right)
        except np.linalg.LinAlgError:
            return np.full((count, size), np.nan), np.zeros_like(normal.point_gradient)
    else:
        pose_step = splu(schur.tocsc()).solve(right)
    pose_step = pose_step.reshape(count, size)
    observations = normal.observations
    pulled = sum_by(
        (normal.between.transpose(0, 2, 1) @ pose_step[observations.image][..., None])[..., 0],
        observations.point, len(normal.points))
    point_step = (_inverted(normal.points, damping)
                  @ (-normal.point_gradient - pulled)[..., None])[..., 0]
    return pose_step, point_step


def _inverted(blocks: np.ndarray, damping: float) -> np.ndarray:
    """Invert damped blocks (P, 3, 3); a point without sightings stays where it is."""
    diagonal = blocks[:, np.arange(3), np.arange(3)]
    largest = np.maximum(diagonal.max(-1, keepdims=True), 1e-300)
    ridge = damping * np.maximum(diagonal, 1e-3 * largest) + 1e-12 * largest
    damped = blocks.astype(np.float64)
    damped[:, np.arange(3), np.arange(3)] += ridge
    damped /= largest[..., None]
    damped[diagonal.max(-1) <= 0] = np.eye(3)
    return np.linalg.inv(damped) / largest[..., None]
