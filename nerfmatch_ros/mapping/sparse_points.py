"""Sparse points of a scene, triangulated from photographs whose poses are known.

They tell a scene's extent, and supervise the depth of a radiance field while it is trained (as in
DS-NeRF, Deng et al., CVPR 2022). Everything is measured on rays, so any camera model works.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from pathlib import Path

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.files import written_atomically
from nerfmatch_ros.mapping.features import detect_features, join_tracks, match_features
from nerfmatch_ros.mapping.ray_intersection import (
    fit_robustly,
    intersect,
    largest_angle,
    ray_errors,
)
from nerfmatch_ros.mapping.relative_pose import epipolar_error
import numpy as np


@dataclass(frozen=True, eq=False)
class SparsePoints:
    """P points and their M observations, sorted by point and then by image."""

    points: np.ndarray  # (P, 3) float64, map frame, metres
    reprojection_error: np.ndarray  # (P,) rms over the observations, pixels
    angle: np.ndarray  # (P,) largest angle between two of the point's rays, radians
    image_index: np.ndarray  # (M,) int64, position in the list of images
    pixel: np.ndarray  # (M, 2) float64, pixels of the full-size image
    point_index: np.ndarray  # (M,) int64, row of `points`

    def save(self, path: Path) -> None:
        """Write them to a file (npz)."""
        with written_atomically(path) as temporary:
            np.savez(temporary, **vars(self))

    @staticmethod
    def load(path: Path) -> 'SparsePoints':
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return SparsePoints(**{key: stored[key] for key in stored.files})


def no_points() -> SparsePoints:
    """Give what is known of a scene before anything was triangulated."""
    return SparsePoints(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0, np.int64),
                        np.zeros((0, 2)), np.zeros(0, np.int64))


def triangulate(
    images: Sequence[PosedImage], *, max_features: int = 1500, neighbours: int = 8,
    detection_side: int = 1000, max_view_angle: float = math.radians(50), ratio: float = 0.85,
    max_error: float = 2.0, min_angle: float = math.radians(1.5), min_observations: int = 3,
) -> SparsePoints:
    """Match SIFT features between neighbouring photographs and intersect their rays.

    max_features: per image
    neighbours: images each image is matched with
    detection_side: pixels; larger images are scaled down to it for finding features
    max_view_angle: radians between the viewing directions of neighbours
    ratio: of the distances to the best and the second-best descriptor, at most
    max_error: pixels, of each observation
    min_angle: radians, of the two most different rays of a point
    min_observations: of each point, in different images

    Pictures without texture give few or no points, which is no error.
    """
    for image in images:
        if image.map_from_camera is None:
            raise DataError(f"image '{image.name}' has no pose; "
                            'points are triangulated from posed images only')
    features = [detect_features(image, max_features, detection_side) for image in images]
    poses = np.array([image.map_from_camera for image in images]).reshape(-1, 4, 4)
    centres = poses[:, :3, 3]
    directions = [f.rays @ pose[:3, :3].T for f, pose in zip(features, poses)]  # map frame
    first_node = np.cumsum([0] + [len(f.pixels) for f in features])
    matches, similarity = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for i, j in neighbour_pairs(poses, neighbours, max_view_angle):
        pair, score = match_features(features[i], features[j], ratio)
        error = epipolar_error(
            directions[i][pair[:, 0]], directions[j][pair[:, 1]],
            features[i].pixel_angle[pair[:, 0]], features[j].pixel_angle[pair[:, 1]],
            centres[j] - centres[i])
        fits = error < max_error
        matches.append(pair[fits] + first_node[[i, j]])
        similarity.append(score[fits])
    image_of_node = np.repeat(np.arange(len(images)), np.diff(first_node))
    nodes, track = join_tracks(np.concatenate(matches), np.concatenate(similarity), image_of_node)
    rays = _concatenate(directions, 3)[nodes]
    pixel_angle = _concatenate([f.pixel_angle for f in features])[nodes]
    origins = centres[image_of_node[nodes]]
    keep = fit_robustly(rays, origins, pixel_angle, track, max_error, min_observations)
    nodes, rays, origins, pixel_angle = nodes[keep], rays[keep], origins[keep], pixel_angle[keep]
    track = np.unique(track[keep], return_inverse=True)[1]
    points = intersect(rays, origins, pixel_angle, track)
    angle = largest_angle(rays, track)
    square = ray_errors(points, rays, origins, pixel_angle, track) ** 2
    error = np.sqrt(np.bincount(track, square) / np.bincount(track))
    good = angle > min_angle
    seen = good[track]
    return SparsePoints(
        points=points[good], reprojection_error=error[good], angle=angle[good],
        image_index=image_of_node[nodes[seen]],
        pixel=_concatenate([f.pixels for f in features], 2)[nodes[seen]],
        point_index=(np.cumsum(good) - 1)[track[seen]])


def neighbour_pairs(
    poses: np.ndarray, neighbours: int, max_view_angle: float,
) -> list[tuple[int, int]]:
    """Choose which images (i, j), i < j, to match, from poses (K, 4, 4) `map_from_camera`.

    The candidates of an image look in a similar direction from another place. They are ranked by
    distance, and ranks 1, 2, 4, ... are taken rather than 1, 2, 3, ...: a video then gets wide
    baselines as well as narrow ones, and a few photographs in a ring still get the nearest.
    """
    centres, forward = poses[:, :3, 3], poses[:, :3, 2]
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    angle = np.arccos(np.clip(forward @ forward.T, -1, 1))
    same_place = distance <= 1e-4 * distance.max(initial=0)
    usable = (angle < max_view_angle) & ~same_place
    pairs = set()
    for i in range(len(poses)):
        # Turning away by the largest angle counts as much as being three times as far away.
        cost = distance[i] * (1 + 2 * angle[i] / max_view_angle)
        candidates = np.flatnonzero(usable[i])
        ranked = candidates[np.argsort(cost[candidates], kind='stable')]
        farthest = max(neighbours, len(ranked) // 3)
        spread = np.round(np.geomspace(1, farthest, neighbours)).astype(int) - 1
        order = dict.fromkeys([*spread.tolist(), *range(neighbours)])
        for rank in [r for r in order if r < len(ranked)][:neighbours]:
            pairs.add((min(i, int(ranked[rank])), max(i, int(ranked[rank]))))
    return sorted(pairs)


def _concatenate(parts: list[np.ndarray], columns: int | None = None) -> np.ndarray:
    """Join arrays along the first axis; no arrays give an empty one."""
    empty = np.zeros((0,) if columns is None else (0, columns))
    return np.concatenate([empty, *parts])
