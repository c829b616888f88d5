"""Camera pose of geometry that a network predicted, and how certain that pose is.

Every cell of a picture has a point in the map and the same point in the camera; the motion that
brings these together best is the pose ("Implicit Learning of Scene Geometry from Poses", RA-L
2023, section III): one step, nothing is searched.

Letters: G = point in the map, C = point in the camera, w = weight, of sum 1; R, p = rotation and
position of map_from_camera; e = G - (R C + p); J = [I, -hat(R C)], the derivative of R C + p by a
perturbation (position, then rotation, both along the map's axes, see geometry/pose.py).
"""

from dataclasses import dataclass
import math

from nerfmatch_ros.geometry.pose import hat
from nerfmatch_ros.geometry.rigid_alignment import align
from nerfmatch_ros.localization.absolute_pose import floored
import numpy as np
import torch
from torch import Tensor

MAX_CONDITION = 1e7  # of the normal matrix, in units where metres and radians compare


@dataclass(frozen=True)
class GeometryEvidence:
    """What predicted geometry tells about the pose that it gives being right."""

    residual_share: float  # rms of e / rms distance of G from its middle; 0: all agree
    residual: float  # metres, rms of e
    spread: float  # metres, rms distance of G from its middle
    off_ray: float  # radians, median angle between C and G as seen from the pose
    mean_weight: float  # of the cells, as the network gave them, 0 to 1
    effective_share: float  # of the cells, that bear the pose: (sum w)^2 / sum w^2 / N
    position_std: float  # metres, along the least certain axis, of the unscaled covariance
    rotation_std: float  # radians, the same for the rotation


@dataclass(frozen=True, eq=False)
class GeometryPose:
    """The pose that predicted geometry gives, or the reason why it gives none."""

    map_from_camera: np.ndarray | None  # (4, 4) float64, metres
    reason: str  # '' with a pose
    # (6, 6) x, y, z, rx, ry, rz; metres, radians, map axes; as if cells erred independently
    covariance: np.ndarray | None
    evidence: GeometryEvidence | None
    middle: np.ndarray | None = None  # (3,) weighted mean of G, map frame, metres


def pose_of_geometry(map_points: Tensor, camera_points: Tensor, weights: Tensor) -> GeometryPose:
    """Align predicted points by their weights; computed in double precision on the CPU.

    map_points: G (N, 3) map frame, metres; camera_points: C (N, 3) camera frame, metres
    weights: (N,) not negative
    """
    given = [value.detach().double().cpu() for value in (map_points, camera_points, weights)]
    if not all(bool(value.isfinite().all()) for value in given):
        return _none('the predicted geometry is not finite')
    target, source, raw = given
    total = raw.sum()
    if total <= 0:
        return _none('no cell of the picture has weight')
    motion = align(source, target, raw)
    if bool(motion.degenerate):
        return _none('the predicted points lie on a line or in one place and fix no pose')
    share = raw / total
    arms = source @ motion.rotation.T
    residuals = target - arms - motion.translation
    spread = math.sqrt(float((share * ((target - share @ target) ** 2).sum(-1)).sum()))
    covariance = _covariance(arms, residuals, share, spread)
    if covariance is None:
        return _none('the predicted points fix no pose; they lie on a line or close together')
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = motion.rotation.numpy(), motion.translation.numpy()
    residual = math.sqrt(float((share * (residuals ** 2).sum(-1)).sum()))
    angles = _angles(target - motion.translation, arms)
    return GeometryPose(pose, '', covariance, GeometryEvidence(
        residual_share=residual / spread, residual=residual, spread=spread,
        off_ray=weighted_median(angles.numpy(), share.numpy()),
        mean_weight=float(raw.mean()),
        effective_share=float(1 / (share ** 2).sum()) / len(share),
        position_std=_largest_std(covariance[:3, :3]),
        rotation_std=_largest_std(covariance[3:, 3:])), (share @ target).numpy())


def covariance_with(
    found: GeometryPose, scale: float, common_m: float, common_rad: float,
) -> np.ndarray:
    """Give the covariance (6, 6) of a pose whose cells also err together.

    A network places all that it sees a little beside, or turned about its middle; the residuals
    tell nothing of that. scale: of the covariance of independent cells. common_m, common_rad:
    standard deviation of shift (metres) and turn (radians) of what is seen, along each axis.
    """
    arm = torch.from_numpy(found.map_from_camera[:3, 3] - found.middle)
    moved = np.eye(6)
    moved[:3, 3:] = -hat(arm).numpy()
    common = np.diag([common_m ** 2] * 3 + [common_rad ** 2] * 3)
    return scale * floored(found.covariance) + moved @ common @ moved.T


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Give the value at which half of the weight is reached; values, weights: (N,)."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, 0.5 * reached[-1])])


def _none(reason: str) -> GeometryPose:
    return GeometryPose(None, reason, None, None)


def _covariance(
    arms: Tensor, residuals: Tensor, share: Tensor, spread: float,
) -> np.ndarray | None:
    """Give the covariance (6, 6) of weighted least squares whatever the errors' own spread.

    With A = sum w J^T J and B = sum w^2 J^T e e^T J it is A^-1 B A^-1 (White, 1980): cells that
    err more than others along some axis widen that axis. None where the points fix no pose.

    arms: R C (N, 3) metres; residuals: e (N, 3) metres; share: w (N,)
    """
    jacobian = torch.cat((torch.eye(3).to(arms).expand(len(arms), 3, 3), -hat(arms)), dim=-1)
    normal = torch.einsum('n,nia,nib->ab', share, jacobian, jacobian)
    pulls = share[:, None] * torch.einsum('nia,ni->na', jacobian, residuals)
    # In units of the spread metres and radians compare.
    unit = torch.tensor([1.0] * 3 + [max(spread, 1e-12)] * 3).to(normal)
    scaled = normal / torch.outer(unit, unit)
    values = torch.linalg.eigvalsh(scaled)
    if not values[0] > values[-1] / MAX_CONDITION:
        return None
    inverse = torch.linalg.inv(scaled) / torch.outer(unit, unit)
    covariance = inverse @ (pulls.T @ pulls) @ inverse
    return ((covariance + covariance.T) / 2).numpy()


def _angles(first: Tensor, second: Tensor) -> Tensor:
    """Give the angles (N,) between vectors (N, 3), radians."""
    across = torch.linalg.vector_norm(torch.linalg.cross(first, second), dim=-1)
    return torch.atan2(across, (first * second).sum(-1))


def _largest_std(block: np.ndarray) -> float:
    return math.sqrt(max(float(np.linalg.eigvalsh(block)[-1]), 0.0))
