"""Refining a pose by a schedule: steps that match again or align pictures, one after the other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.alignment import Alignment
import numpy as np

# match: render at the pose, match, solve; views: the same from several poses around it, solved
# together; photometric: align rendered colours with the picture; inerf: the paper's optimisation
# through the field.
STEPS = ('match', 'views', 'photometric', 'inerf')


@dataclass(frozen=True, eq=False)
class Refinement:
    """Where a schedule led."""

    map_from_camera: np.ndarray | None  # (4, 4); None: nowhere
    reason: str  # why there is no pose; '' with a pose
    matched: PoseEstimate | None  # of the last step that matched
    aligned: Alignment | None  # of the last step that aligned after that, or before any matched


def checked_schedule(schedule: Sequence[str]) -> tuple[str, ...]:
    """Give the steps of a schedule; ConfigError names one that is unknown."""
    if isinstance(schedule, str):
        raise ConfigError(f"schedule '{schedule}' is a string; give a list of steps")
    for step in schedule:
        if step not in STEPS:
            raise ConfigError(f"refinement step '{step}' is unknown; use {', '.join(STEPS)}")
    return tuple(schedule)


def run_schedule(
    map_from_camera: np.ndarray, schedule: Sequence[str],
    steps: Mapping[str, Callable[[np.ndarray], PoseEstimate | Alignment]],
) -> Refinement:
    """Run the steps one after the other, each from the pose of the one before.

    map_from_camera: (4, 4), where the first step starts. A step that matches and fails takes back
    what was aligned since the last one that succeeded, and without such a one the whole schedule
    has failed; an alignment that fails is left out.
    """
    pose, matched, aligned, reason = map_from_camera, None, None, 'the schedule is empty'
    for name in schedule:
        found = steps[name](pose)
        if found.map_from_camera is not None:
            pose = found.map_from_camera
            if isinstance(found, PoseEstimate):
                matched, aligned = found, None
            else:
                aligned = found
            continue
        reason = found.reason
        if isinstance(found, PoseEstimate):
            if matched is None:
                return Refinement(None, reason, None, None)
            pose, aligned = matched.map_from_camera, None
    if matched is None and aligned is None:
        return Refinement(None, reason, None, None)
    return Refinement(pose, '', matched, aligned)
