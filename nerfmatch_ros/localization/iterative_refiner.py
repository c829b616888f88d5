"""Iterative refinement (paper, Sec. 3.4): look from the estimate, match, solve, until it rests.

A new pose replaces the old one only on better evidence of its own: more inliers for the points
that were offered. No true pose is ever involved.
"""

from collections.abc import Callable
import math

from nerfmatch_ros.geometry.pose import pose_distance
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
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


def refine(
    estimate: PoseEstimate, step: Callable[[PoseEstimate], PoseEstimate], rounds: int, *,
    at_rest: tuple[float, float] = AT_REST,
) -> PoseEstimate:
    """Repeat `step` from the best estimate so far, until it rests."""
    for _ in range(rounds):
        if estimate.map_from_camera is None:
            break
        candidate = step(estimate)
        if not is_better(candidate, estimate):
            break
        moved = pose_distance(torch.from_numpy(candidate.map_from_camera),
                              torch.from_numpy(estimate.map_from_camera))
        estimate = candidate
        if moved[0] < at_rest[0] and moved[1] < at_rest[1]:
            break
    return estimate
