"""
Truth in a frame other than the map's: the similarity between them, found from cameras in both.

A localizer must be right in the frame of its map, so nothing is aligned unless it is asked for. It
is needed where the map's frame is the robot's own (odometry, rough poses, no poses at all) and
truth was measured in another.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.pose import pose_distance
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.geometry.trajectory_alignment import align_trajectories
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import torch

FEWEST = 3


@dataclass(frozen=True)
class FrameAlignment:
    """How truth and map are related, and by what that is known."""

    truth_from_map: Similarity
    by: str  # 'map cameras' or 'queries'
    cameras: int
    median_m: float  # distance between aligned and true centres of these cameras
    median_deg: float

    def report(self) -> dict:
        """Give plain values for a report."""
        return {'by': self.by, 'cameras': self.cameras, 'scale': self.truth_from_map.scale,
                'median_translation_m': self.median_m, 'median_rotation_deg': self.median_deg}


def align_with_truth(
    scene_map: SceneMap, known: Sequence[PosedImage], estimates: Sequence[np.ndarray | None],
    queries: Sequence[PosedImage], *, with_scale: bool,
) -> FrameAlignment:
    """Find truth_from_map by the map's own cameras whose photographs have true poses.

    known: images with true poses, any of them; those that the map was made of are found by their
    names. Where fewer than three are, the queries themselves serve: estimates (N) in the map, one
    for each. Raises DataError where these are too few as well.
    """
    names = {name: k for k, name in enumerate(scene_map.reference_names)}
    both = [(scene_map.reference_poses[names[image.name]], image.map_from_camera)
            for image in known if image.name in names and image.map_from_camera is not None]
    by = 'map cameras'
    if len(both) < FEWEST:
        by = 'queries'
        both = [(pose, image.map_from_camera) for pose, image in zip(estimates, queries)
                if pose is not None]
    if len(both) < FEWEST:
        raise DataError(
            f'{len(both)} cameras are known in the map and in truth, {FEWEST} are needed to align '
            'them; give the photographs that the map was built of, or do not align')
    in_map, in_truth = (np.stack(poses) for poses in zip(*both))
    found = align_trajectories(in_map, in_truth, robust=True, with_scale=with_scale)
    metres, radians = pose_distance(
        torch.from_numpy(found.apply_to_pose(in_map)), torch.from_numpy(in_truth))
    return FrameAlignment(found, by, len(both), float(metres.median()),
                          float(torch.rad2deg(radians).median()))


def moved_estimate(estimate: PoseEstimate, truth_from_map: Similarity) -> PoseEstimate:
    """Give an estimate with pose and covariance in the frame of truth."""
    if estimate.map_from_camera is None:
        return estimate
    covariance = estimate.covariance
    if covariance is not None:
        turn = np.zeros((6, 6))
        turn[:3, :3] = truth_from_map.scale * truth_from_map.rotation
        turn[3:, 3:] = truth_from_map.rotation
        covariance = turn @ covariance @ turn.T
    return replace(
        estimate, map_from_camera=truth_from_map.apply_to_pose(estimate.map_from_camera),
        covariance=covariance)


def moved_results(results: Sequence[Any], alignment: FrameAlignment) -> list[Any]:
    """Give `QueryResult`s whose estimates are in the frame of truth."""
    return [replace(result, estimate=moved_estimate(result.estimate, alignment.truth_from_map))
            for result in results]
