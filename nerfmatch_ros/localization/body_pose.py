"""The pose of a body from that of its camera, and which covariances of a pose can be used.

A covariance is (6, 6) float64, order x, y, z, rx, ry, rz, metres and radians, along the axes of
the map, as in geometry/pose.py. Letters: R = rotation of map_from_camera; t = place of the body's
origin in the camera. A turn of the camera swings the body at the end of that lever:
dp_body = dp_camera - hat(R t) dtheta.
"""

import math

from nerfmatch_ros.localization.absolute_pose import (
    MAX_CONDITION,
    POSITION_FLOOR,
    ROTATION_FLOOR,
)
from nerfmatch_ros.localization.rigid_motion import hat, inverse
import numpy as np

# Standard deviation of a pose that a person or a file states without saying how certain it is.
PRIOR_POSITION = 0.5  # metres
PRIOR_ROTATION = math.radians(15)

_PLANE = np.ix_((0, 1, 5), (0, 1, 5))  # x, y, rz


def body_from_camera(
    map_from_camera: np.ndarray, covariance: np.ndarray | None, base_from_camera: np.ndarray,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Give map_from_base (4, 4) and its covariance (6, 6); base_from_camera counts as exact."""
    return _along_lever(map_from_camera, covariance, inverse(base_from_camera))


def camera_from_body(
    map_from_base: np.ndarray, covariance: np.ndarray | None, base_from_camera: np.ndarray,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Give map_from_camera (4, 4) and its covariance (6, 6), from those of the body."""
    return _along_lever(map_from_base, covariance, base_from_camera)


def flatten(
    pose: np.ndarray, covariance: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """
    Put a pose (4, 4) upright on the plane z = 0, keeping x, y and the heading.

    The covariance (6, 6) keeps what it says of these three; the others are known, up to the
    floors, so that it stays invertible.
    """
    heading = math.atan2(pose[1, 0], pose[0, 0])
    flat = np.eye(4)
    flat[:2, :2] = ((math.cos(heading), -math.sin(heading)),
                    (math.sin(heading), math.cos(heading)))
    flat[:2, 3] = pose[:2, 3]
    if covariance is None:
        return flat, None
    planar = np.diag(np.repeat((POSITION_FLOOR ** 2, ROTATION_FLOOR ** 2), 3))
    planar[_PLANE] = covariance[_PLANE]
    return flat, planar


def condition(covariance: np.ndarray) -> float:
    """Give the condition number of a covariance (6, 6), free of units; inf where it is none.

    The variances are scaled to 1 first, so metres and radians do not matter.
    """
    covariance = np.asarray(covariance)
    if (covariance.shape != (6, 6) or covariance.dtype.kind not in 'fiu'
            or not np.isfinite(covariance).all()):
        return math.inf
    covariance = covariance.astype(np.float64)
    variances = covariance.diagonal()
    if not (variances > 0).all():
        return math.inf
    deviations = np.sqrt(variances)
    with np.errstate(over='ignore', invalid='ignore'):
        correlation = covariance / deviations / deviations[:, None]
        if not np.abs(correlation - correlation.T).max() <= 1e-6:  # NaN from overflow included
            return math.inf
    values = np.linalg.eigvalsh(correlation)
    return float(values[-1] / values[0]) if values[0] > 0 else math.inf


def usable_covariance(covariance: np.ndarray) -> bool:
    """Say whether a covariance is (6, 6), finite, symmetric and positive definite with margin."""
    return condition(covariance) <= MAX_CONDITION


def prior_covariance(covariance: np.ndarray) -> np.ndarray:
    """Replace variances of 0, which stand for unknown, by those of a pose given by hand."""
    covariance = np.array(covariance, np.float64)
    default = np.repeat((PRIOR_POSITION ** 2, PRIOR_ROTATION ** 2), 3)
    unknown = covariance.diagonal() == 0
    covariance[unknown, :] = 0
    covariance[:, unknown] = 0
    covariance[unknown, unknown] = default[unknown]
    return covariance


def _along_lever(
    map_from_one: np.ndarray, covariance: np.ndarray | None, one_from_other: np.ndarray,
) -> tuple[np.ndarray, np.ndarray | None]:
    map_from_other = map_from_one @ one_from_other
    if covariance is None:
        return map_from_other, None
    lever = np.eye(6)
    lever[:3, 3:] = -hat(map_from_other[:3, 3] - map_from_one[:3, 3])
    moved = lever @ covariance @ lever.T
    return map_from_other, (moved + moved.T) / 2
