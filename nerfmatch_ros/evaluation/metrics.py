"""
Measures of pose accuracy over a set of queries, in numpy.

Letters: N queries. A query without an estimate has infinite error, so it stays in every
denominator and in every median.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nerfmatch_ros.geometry.pose import pose_difference
import numpy as np
import torch

# name: (metres, degrees); the limit of '1pct_extent_1deg' is a share of the map's extent.
RECALL_LIMITS = {
    '5cm_5deg': (0.05, 5.0),
    '10cm_1deg': (0.10, 1.0),
    '25cm_2deg': (0.25, 2.0),
    '50cm_5deg': (0.50, 5.0),
}
EXTENT_SHARE = 0.01

# A robot that trusts its covariance is misled when the pose is further off than the first while
# the reported standard deviation is below the second (metres).
WRONG_BY = 0.5
CONFIDENT_BELOW = 0.05


@dataclass(frozen=True)
class PoseErrors:
    """Errors of N queries; infinite where there is no estimate."""

    translation: np.ndarray  # (N,) metres, between the camera centres
    rotation: np.ndarray  # (N,) degrees, angle of the rotation between the two poses

    def __len__(self) -> int:
        return len(self.translation)


def difference(estimated: np.ndarray, true: np.ndarray) -> np.ndarray:
    """
    Give the six numbers that move an estimated pose onto the true one (`geometry.pose.perturb`).

    estimated, true: (4, 4) map_from_camera; result: (6,) metres and radians, map axes.
    """
    poses = (torch.from_numpy(np.asarray(pose, dtype=np.float64)) for pose in (estimated, true))
    return pose_difference(*poses).numpy()


def pose_errors(
    estimated: Sequence[np.ndarray | None], true: Sequence[np.ndarray],
) -> PoseErrors:
    """Compare estimates, (4, 4) map_from_camera or None, with the true poses."""
    if len(estimated) != len(true):
        raise ValueError(f'{len(estimated)} estimates for {len(true)} true poses')
    translation, rotation = np.full(len(true), np.inf), np.full(len(true), np.inf)
    for i, (pose, truth) in enumerate(zip(estimated, true)):
        if pose is not None and np.isfinite(pose).all():
            delta = difference(pose, truth)
            translation[i] = np.linalg.norm(delta[:3])
            rotation[i] = np.degrees(np.linalg.norm(delta[3:]))
    return PoseErrors(translation, rotation)


def median(errors: np.ndarray) -> float:
    """Give the median over ALL queries; infinite when half of them or more failed."""
    return percentile(errors, 50.0)


def percentile(values: np.ndarray, percent: float) -> float:
    """Give a percentile with linear interpolation; nan for no values, infinity is allowed."""
    ordered = np.sort(np.asarray(values, dtype=float))
    if not len(ordered):
        return float('nan')
    position = percent / 100 * (len(ordered) - 1)
    below, above = ordered[int(np.floor(position))], ordered[int(np.ceil(position))]
    if below == above:  # also both infinite, where the difference would be nan
        return float(below)
    return float(below + (position - np.floor(position)) * (above - below))


def recall(errors: PoseErrors, metres: float, degrees: float) -> float:
    """Give the share of all queries that are within both limits; 0 for no queries."""
    within = (errors.translation <= metres) & (errors.rotation <= degrees)
    return float(np.count_nonzero(within) / max(len(errors), 1))


def recalls(errors: PoseErrors, extent: float) -> dict[str, float]:
    """Give the share of all queries within each of the usual limits; extent: metres of the map."""
    shares = {name: recall(errors, *limits) for name, limits in RECALL_LIMITS.items()}
    shares['1pct_extent_1deg'] = recall(errors, EXTENT_SHARE * extent, 1.0)
    return shares


def confident_but_wrong(errors: PoseErrors, position_std: np.ndarray) -> int:
    """Count localized queries that are far off while claiming to be sure; std: (N,) metres."""
    localized = np.isfinite(errors.translation)
    wrong = localized & (errors.translation > WRONG_BY)
    return int(np.count_nonzero(wrong & (np.asarray(position_std, float) < CONFIDENT_BELOW)))


def average_nees(
    estimated: Sequence[np.ndarray | None], true: Sequence[np.ndarray],
    covariances: Sequence[np.ndarray | None],
) -> float:
    """
    Average the normalised squared pose error d' C^-1 d: 6 is honest, more is over-confident.

    covariances: (6, 6) in metres and radians, map axes. Queries without an estimate or a
    covariance do not count; nan when none is left, infinite for a singular covariance.
    """
    values = []
    for pose, truth, covariance in zip(estimated, true, covariances):
        if pose is None or covariance is None or not np.isfinite(covariance).all():
            continue
        delta = difference(pose, truth)
        try:
            values.append(float(delta @ np.linalg.solve(covariance, delta)))
        except np.linalg.LinAlgError:
            values.append(float('inf'))
    return float(np.mean(values)) if values else float('nan')
