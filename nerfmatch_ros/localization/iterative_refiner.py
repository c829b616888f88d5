"""Iterative refinement (paper, Sec. 3.4): look from the estimate, match, solve, until it rests.

A new pose replaces the old one only on better evidence of its own: more inliers for the points
that were offered. No true pose is ever involved.
"""

from collections.abc import Callable
import math

from nerfmatch_ros.geometry.pose import pose_distance
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
import numpy as np
import torch

# Metres and radians; a round that moves the pose by less is the last one.
AT_REST = (0.001, math.radians(0.02))


def is_better(new: PoseEstimate, old: PoseEstimate) -> bool:
    """Prefer the estimate that more matches agree with, or about as many agree more closely."""
    if new.map_from_camera is None:
        return False
    if old.map_from_camera is None or new.inliers > 1.05 * old.inliers:
        return True
    return (new.inliers > 0.85 * old.inliers
            and new.reprojection_error < old.reprojection_error)


def is_near(pose: np.ndarray, other: np.ndarray, limits: tuple[float, float]) -> bool:
    """Tell whether two poses (4, 4) are less than so many metres and radians apart."""
    apart = pose_distance(*(
        torch.from_numpy(np.ascontiguousarray(each, np.float64)) for each in (pose, other)))
    return bool(apart[0] < limits[0] and apart[1] < limits[1])


def refine(
    estimate: PoseEstimate, step: Callable[[PoseEstimate], PoseEstimate], rounds: int, *,
    at_rest: tuple[float, float] = AT_REST,
) -> PoseEstimate:
    """Repeat `step` from the best estimate so far, until it rests.

    at_rest: metres and radians; a step that moves the pose by less is the last one.
    """
    for _ in range(rounds):
        if estimate.map_from_camera is None:
            break
        candidate = step(estimate)
        if not is_better(candidate, estimate):
            break
        rests = is_near(candidate.map_from_camera, estimate.map_from_camera, at_rest)
        estimate = candidate
        if rests:
            break
    return estimate
