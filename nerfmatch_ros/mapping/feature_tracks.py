"""Tracks: what keypoints of many photographs show the same point, chosen to cover every one."""

from collections.abc import Sequence
from dataclasses import dataclass

from nerfmatch_ros.mapping.bundle_adjustment import Observations
from nerfmatch_ros.mapping.feature_pairs import ImagePair
from nerfmatch_ros.mapping.features import Features, join_tracks
from nerfmatch_ros.mapping.ray_intersection import fit_robustly, intersect, ray_errors
import numpy as np
from scipy.sparse import csr_array

_FARTHEST = 100.0  # times the median distance of points; farther ones begin nearer


@dataclass(frozen=True, eq=False)
class Tracks:
    """M sightings, sorted by track and image; tracks count from 0."""

    image: np.ndarray  # (M,) int64
    track: np.ndarray  # (M,) int64
    rays: np.ndarray  # (M, 3) unit directions, camera frame
    pixel_angle: np.ndarray  # (M,) radians that a pixel spans
    keypoint: np.ndarray  # (M,) row of the image's `Features.pixels`

    def __len__(self) -> int:
        """Give the number of tracks."""
        return int(self.track[-1]) + 1 if len(self.track) else 0

    def chosen(self, mask: np.ndarray) -> 'Tracks':
        """Keep the sightings of a mask (M,), and number the tracks anew."""
        track = np.unique(self.track[mask], return_inverse=True)[1].reshape(-1)
        return Tracks(self.image[mask], track, self.rays[mask], self.pixel_angle[mask],
                      self.keypoint[mask])

    def observations(self, sigma: float) -> Observations:
        """Give the sightings for the adjustment; sigma: pixels."""
        return Observations(self.image, self.track, self.rays, sigma * self.pixel_angle)

    def shared(self, images: int) -> np.ndarray:
        """Count the tracks that two images have in common (K, K), K = `images`."""
        sees = csr_array((np.ones(len(self.image), np.int32), (self.image, self.track)),
                         shape=(images, max(len(self), 1)))
        return (sees @ sees.T).toarray()

    def world(self, poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give the rays (M, 3) in the map and their origins (M, 3) under poses (K, 4, 4)."""
        pose = poses[self.image]
        return (pose[:, :3, :3] @ self.rays[..., None])[..., 0], pose[:, :3, 3]


def make_tracks(
    features: Sequence[Features], pairs: Sequence[ImagePair], *, per_image: int,
) -> Tracks:
    """Join the matches of pairs, and choose the longest tracks that cover all images.

    per_image: tracks that are enough for an image; more are left out unless others need them.
    """
    first_node = np.cumsum([0] + [len(f.pixels) for f in features])
    matches = np.concatenate([np.zeros((0, 2), np.int64), *(
        pair.matches + first_node[[pair.first, pair.second]] for pair in pairs)])
    similarity = np.concatenate([np.zeros(0), *(pair.similarity for pair in pairs)])
    image_of_node = np.repeat(np.arange(len(features)), np.diff(first_node))
    nodes, track = join_tracks(matches, similarity, image_of_node)
    rays = np.concatenate([np.zeros((0, 3)), *(f.rays for f in features)])[nodes]
    pixel_angle = np.concatenate([np.zeros(0), *(f.pixel_angle for f in features)])[nodes]
    image = image_of_node[nodes]
    every = Tracks(image, track, rays, pixel_angle, nodes - first_node[image])
    return every.chosen(_covering(every, len(features), per_image)[every.track])


def _covering(tracks: Tracks, images: int, per_image: int) -> np.ndarray:
    """Tell which tracks (T,) to keep: the longest first, while an image in them has too few."""
    start = np.searchsorted(tracks.track, np.arange(len(tracks) + 1))
    length = np.diff(start)
    missing = np.full(images, per_image)
    keep = np.zeros(len(tracks), bool)
    for number in np.argsort(-length, kind='stable').tolist():
        seen = tracks.image[start[number]:start[number + 1]]
        if (missing[seen] > 0).any():
            keep[number] = True
            missing[seen] -= 1
    return keep


def fitting(tracks: Tracks, poses: np.ndarray, max_error: float, enough: int) -> Tracks:
    """Drop the sightings that agree with no point under poses (K, 4, 4), within some pixels.

    Two rays meet wherever they are wrong by the same, so points of two sightings count only where
    one of the images has fewer than `enough` sightings of points that three images see.
    """
    rays, origins = tracks.world(poses)
    kept = tracks.chosen(fit_robustly(
        rays, origins, tracks.pixel_angle, tracks.track, max_error, 2))
    confirmed = np.bincount(kept.track)[kept.track] > 2
    sightings = np.bincount(kept.image[confirmed], minlength=len(poses))
    helps = np.zeros(len(kept), bool)
    helps[kept.track[sightings[kept.image] < enough]] = True
    return kept.chosen(confirmed | helps[kept.track])


def starting_points(tracks: Tracks, poses: np.ndarray) -> np.ndarray:
    """Intersect tracks under poses (K, 4, 4): points (T, 3), none of them behind a camera.

    Where rays do not meet ahead, as under rough poses, the point lies on the mean ray in the
    median distance of the others.
    """
    rays, origins = tracks.world(poses)
    points = intersect(rays, origins, tracks.pixel_angle, tracks.track)
    count = np.bincount(tracks.track)[:, None]
    error = ray_errors(points, rays, origins, tracks.pixel_angle, tracks.track)
    behind = np.zeros(len(tracks), bool)
    behind[tracks.track[~np.isfinite(error)]] = True
    middle = np.stack([np.bincount(tracks.track, column) for column in origins.T], -1) / count
    towards = np.stack([np.bincount(tracks.track, column) for column in rays.T], -1) / count
    distance = np.linalg.norm(points - middle, axis=-1)
    good = ~behind & np.isfinite(distance)
    usual = np.median(distance[good]) if good.any() else 1.0
    good &= distance < _FARTHEST * usual
    towards /= np.maximum(np.linalg.norm(towards, axis=-1, keepdims=True), 1e-9)
    return np.where(good[:, None], points, middle + usual * towards)
