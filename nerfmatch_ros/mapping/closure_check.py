"""Whether two photographs that look alike can be of one place: against poses of their neighbours.

Doors and posters repeat, so that matching keypoints alone do not prove a place. What neighbouring
frames know of the keypoints' points decides: the other photograph would have to see them where it
does, up to how far its pose may be wrong.
"""

from collections.abc import Sequence

from nerfmatch_ros.mapping.feature_pairs import ImagePair
from nerfmatch_ros.mapping.feature_tracks import Tracks
import numpy as np

_SIGMAS = 5.0  # of the poses, that are believed
_SHARE = 0.05  # of a point's distance, by which it may be wrong
_FEWEST = 5  # points that tell


def possible(
    pairs: Sequence[ImagePair], rays: Sequence[np.ndarray], tracks: Tracks, points: np.ndarray,
    poses: np.ndarray, covariances: np.ndarray, slack: np.ndarray,
) -> np.ndarray:
    """Tell which pairs (E,) the poses allow.

    rays: of each image's keypoints (N, 3), camera frame; tracks, points (P, 3): of frames that
    are near to each other; poses: (K, 4, 4) map_from_camera with covariances (K, 6, 6); slack:
    (E,) metres by which the two poses of a pair may be wrong beyond that. Pairs of two images of
    which no points are known are allowed, as they bend nothing.
    """
    known = [_points_of(tracks, points, image, len(rays[image])) for image in range(len(poses))]
    spread = np.sqrt(np.stack((np.trace(covariances[:, :3, :3], axis1=1, axis2=2),
                               np.trace(covariances[:, 3:, 3:], axis1=1, axis2=2)), axis=-1))
    allowed = []
    for pair, more in zip(pairs, slack):
        metres, radians = np.hypot(spread[pair.first], spread[pair.second])
        excess = []
        for here, there, columns in ((pair.first, pair.second, (0, 1)),
                                     (pair.second, pair.first, (1, 0))):
            at, seen = pair.matches[:, columns[0]], pair.matches[:, columns[1]]
            point = known[here][at]
            has = np.isfinite(point[:, 0])
            miss, distance = _miss(point[has], rays[there][seen[has]], poses[there])
            excess.append(miss - (_SHARE + _SIGMAS * radians) * distance)
        excess = np.concatenate(excess)
        if len(excess) < _FEWEST:
            allowed.append(not any(np.isfinite(known[image]).any()
                                   for image in (pair.first, pair.second)))
        else:
            allowed.append(bool(np.median(excess) < _SIGMAS * metres + more))
    return np.array(allowed, bool)


def _points_of(tracks: Tracks, points: np.ndarray, image: int, keypoints: int) -> np.ndarray:
    """Give the point (N, 3) that each keypoint of an image shows; NaN where it is not known."""
    known = np.full((keypoints, 3), np.nan)
    seen = tracks.image == image
    known[tracks.keypoint[seen]] = points[tracks.track[seen]]
    return known


def _miss(
    points: np.ndarray, rays: np.ndarray, pose: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Give how far (N,), metres, points lie from rays (N, 3) of a camera, and their distances."""
    offset = points - pose[:3, 3]
    direction = rays @ pose[:3, :3].T
    along = np.maximum((offset * direction).sum(-1), 0)  # a ray begins at the camera
    return (np.linalg.norm(offset - along[:, None] * direction, axis=-1),
            np.linalg.norm(offset, axis=-1))
