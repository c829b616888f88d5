"""How two photographs stand to each other, from matched keypoints alone, and what agrees.

Letters: a, b = unit rays of a match in the two cameras; t = centre of the second camera in the
first; N = matches.
"""

from dataclasses import dataclass
import math

import numpy as np
import poselib
from scipy.special import betainc, gammaln

_EDGE = math.cos(math.radians(80))  # poselib takes points of the plane z = 1, no wider
_FALSE_ALARMS = 1e-3  # relative poses that chance may supply before one counts as chance
_FREE = 5  # matches that a relative pose meets exactly
_SOLUTIONS = 10  # of five matches


@dataclass(frozen=True, eq=False)
class RelativePose:
    """The second camera as the first one sees it; lengths are unknown."""

    rotation: np.ndarray  # (3, 3) first_from_second
    direction: np.ndarray  # (3,) unit vector to the second camera, in the first camera's axes
    inliers: np.ndarray  # (N,) bool


def relative_pose(
    first: np.ndarray, second: np.ndarray, first_pixel: np.ndarray, second_pixel: np.ndarray, *,
    max_error: float = 2.0, min_inliers: int = 15, max_iterations: int = 2000, seed: int = 0,
) -> RelativePose | None:
    """Find the relative pose that most matches agree with, by RANSAC; None where it may be chance.

    first, second: (N, 3) unit rays in their cameras; first_pixel, second_pixel: (N,) radians that
    a pixel spans there; max_error: pixels from the epipolar plane. Cameras in one place give the
    rotation and a direction that means nothing.
    """
    ahead = (first[:, 2] > _EDGE) & (second[:, 2] > _EDGE)
    if ahead.sum() < max(min_inliers, _FREE + 1):
        return None
    # A pixel's angle in the plane z = 1, of most of the matches: one focal length for the search.
    focal = [float(1 / np.median(pixel[ahead] / rays[ahead, 2] ** 1.5))
             for pixel, rays in ((first_pixel, first), (second_pixel, second))]
    planes = [f * rays[ahead, :2] / rays[ahead, 2:] for f, rays in zip(focal, (first, second))]
    cameras = [{'model': 'PINHOLE', 'width': 1, 'height': 1, 'params': [f, f, 0.0, 0.0]}
               for f in focal]
    found, _ = poselib.estimate_relative_pose(
        *planes, *cameras,
        {'max_epipolar_error': float(max_error), 'seed': int(seed), 'min_iterations': 50,
         'max_iterations': int(max_iterations)},
        {'loss_type': 'CAUCHY', 'loss_scale': 0.5 * float(max_error)})
    second_from_first = np.asarray(found.Rt, np.float64)
    if not np.isfinite(second_from_first).all():
        return None
    rotation = second_from_first[:, :3].T
    direction = -rotation @ second_from_first[:, 3]
    length = np.linalg.norm(direction)
    direction = direction / length if length > 0 else np.array([0.0, 0.0, 1.0])
    turned = second @ rotation.T
    inliers = epipolar_error(first, turned, first_pixel, second_pixel, direction) < max_error
    inliers &= _ahead(first, turned, direction)
    count = int(inliers.sum())
    if count < min_inliers or _log10_false_alarms(
            len(first), count, _chance(planes, max_error)) > math.log10(_FALSE_ALARMS):
        return None
    return RelativePose(rotation, direction, inliers)


def epipolar_error(
    a: np.ndarray, b: np.ndarray, a_pixel: np.ndarray, b_pixel: np.ndarray, baseline: np.ndarray,
) -> np.ndarray:
    """Give how far (N,), pixels, rays a and b (N, 3) miss each other's epipolar plane.

    a, b: in the same axes; a_pixel, b_pixel: (N,) radians that a pixel spans; baseline: (3,) from
    a's origin to b's, of any length.
    """

    def miss(ray: np.ndarray, other: np.ndarray, pixel_angle: np.ndarray) -> np.ndarray:
        normal = np.cross(baseline, other)
        length = np.linalg.norm(normal, axis=-1)
        return np.abs((normal * ray).sum(-1)) / np.maximum(length, 1e-12) / pixel_angle

    return np.maximum(miss(a, b, a_pixel), miss(b, a, b_pixel))


def _ahead(a: np.ndarray, b: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Tell which rays (N, 3) meet before both cameras, or run so parallel that they may."""
    # a s - b u = t has s = ((a - (a.b) b) . t) / (1 - (a.b)^2), and u likewise.
    cosine = (a * b).sum(-1)
    along_a, along_b = a @ direction, b @ direction
    slack = 1e-3  # of sin^2, rays of far points
    return (along_a - cosine * along_b > -slack) & (cosine * along_a - along_b > -slack)


def _chance(planes: list[np.ndarray], limit: float) -> float:
    """Give the probability that a wrong match lies within `limit` pixels of its epipolar line."""
    shares = []
    for plane in planes:
        size = np.ptp(plane, axis=0) + 2 * limit
        shares.append(2 * limit * np.linalg.norm(size) / np.prod(size))
    return float(min(max(shares), 1.0))


def _log10_false_alarms(matches: int, inliers: int, chance: float) -> float:
    """Give log10 of how many relative poses would have as many inliers by chance.

    Each of the 10 C(matches, 5) poses through five matches meets every other match with the
    probability `chance` (a contrario: Moisan and Stival, IJCV 2004).
    """
    poses = math.log(_SOLUTIONS) + gammaln(matches + 1) - gammaln(matches - _FREE + 1) \
        - gammaln(_FREE + 1)
    others, trials = inliers - _FREE, matches - _FREE
    tail = betainc(others, trials - others + 1, chance) if others > 0 else 1.0
    return float(poses + (math.log(tail) if tail > 0 else -math.inf)) / math.log(10)
