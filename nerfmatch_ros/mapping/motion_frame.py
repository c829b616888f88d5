"""The map frame of poses that pictures alone gave: which way is up, and how long a metre is.

Structure from motion knows neither. Here a similarity map_from_motion is chosen: from rough poses
of the same images, or from one known distance and how photographers hold cameras.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import logging
import math

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.rigid_alignment import align
from nerfmatch_ros.geometry.similarity import Similarity
import numpy as np
from scipy.spatial.transform import Rotation
import torch

LOG = logging.getLogger(__name__)
USUAL_DISTANCE = 3.0  # metres, of the points that cameras see, where nothing tells the scale
_STEPS = 30  # of reweighting
_LEVEL = 0.35  # sines beyond which cameras' x axes are no horizon: they were turned at will


@dataclass(frozen=True)
class KnownDistance:
    """How far apart two images were taken."""

    first: str  # name of an image
    second: str
    metres: float

    def __post_init__(self):
        """Check the values."""
        if not (math.isfinite(self.metres) and self.metres > 0) or self.first == self.second:
            raise DataError(f"a known distance is that of two images in metres, not "
                            f"'{self.first}' '{self.second}' {self.metres}")


def frame_from_poses(motion_from_camera: np.ndarray, rough: np.ndarray) -> Similarity:
    """Give the similarity that brings poses (K, 4, 4) nearest to rough ones of the same images.

    Robust: distances count, not their squares. Where the cameras stand on one line, their
    directions tell what the places do not.
    """
    turns = rough[:, :3, :3] @ motion_from_camera[:, :3, :3].transpose(0, 2, 1)
    source, target = motion_from_camera[:, :3, 3], rough[:, :3, 3]
    reach = _reach(target)
    if not reach > 0:
        raise DataError('the rough poses are all in one place; they tell no scale')
    weights = np.ones(len(source))
    # A direction is worth as much as two points, one usual distance ahead of and above a camera.
    scale = reach / max(_reach(source), 1e-12)
    for _ in range(_STEPS):
        points = [np.concatenate([p[:, :3, 3], *(p[:, :3, 3] + length * p[:, :3, axis]
                                                 for axis in (1, 2))])
                  for p, length in ((motion_from_camera, reach / scale), (rough, reach))]
        found = align(*(torch.from_numpy(p) for p in points),
                      torch.from_numpy(np.tile(weights, 3)), with_scale=True)
        rotation, scale = found.rotation.numpy(), float(found.scale)
        # The points ahead would pull the scale to what it was; the places alone measure it.
        centred = [x - np.average(x, axis=0, weights=weights) for x in (source, target)]
        top = (weights[:, None] * centred[1] * (centred[0] @ rotation.T)).sum()
        scale = top / (weights[:, None] * centred[0] ** 2).sum()
        if not scale > 0:
            raise DataError('the rough poses contradict what the pictures show: no scale fits; '
                            'are they poses of these pictures?')
        shift = np.average(target - scale * source @ rotation.T, axis=0, weights=weights)
        error = np.linalg.norm(scale * source @ rotation.T + shift - target, axis=-1)
        angle = Rotation.from_matrix(rotation.T @ turns).magnitude()
        error = np.hypot(error, reach * angle)
        weights = 1 / np.maximum(error, 0.1 * np.median(error) + 1e-9)
        weights /= weights.sum()
    return Similarity(scale, rotation, shift)


def _reach(places: np.ndarray) -> float:
    """Give how far places (K, 3) reach: of a way that mostly turned on the spot, the rest."""
    middle = (np.percentile(places, 10, axis=0) + np.percentile(places, 90, axis=0)) / 2
    return float(np.percentile(np.linalg.norm(places - middle, axis=-1), 80))


def level_frame(
    motion_from_camera: np.ndarray, names: Sequence[str], distance: KnownDistance | None,
    depths: np.ndarray, up_in_camera: np.ndarray | None = None,
) -> tuple[Similarity, dict]:
    """Give a frame with z up and the cameras' middle as origin, and in words how it was found.

    motion_from_camera: (K, 4, 4); names: of the images; depths: of points that cameras see, in
    the units of the poses. up_in_camera: (K, 3) towards the upper edge of the scene as the
    photographer held the camera, camera axes; None: that of the picture. Cameras are mostly held
    level: the axes across lie in the horizon. Where they do not, up is the mean of the cameras'.
    """
    if up_in_camera is None:
        up_in_camera = np.tile((0.0, -1.0, 0.0), (len(motion_from_camera), 1))
    turns = motion_from_camera[:, :3, :3]
    upwards = (turns @ up_in_camera[:, :, None])[..., 0]
    sideways = (turns @ np.cross(up_in_camera, (0.0, 0.0, 1.0))[:, :, None])[..., 0]
    up, how = _horizon(sideways, upwards), 'the horizon of level cameras'
    if up is None:
        up, how = upwards.mean(0), "the mean of the cameras' up"
        if np.linalg.norm(up) < 1e-6:
            up, how = upwards[0], "the first camera's up"
        if _horizon(upwards, sideways) is not None:
            LOG.warning('the cameras seem to have been held upright without saying so; z of the '
                        'map may be level. Turn the map, or turn the pictures as they were held')
        else:
            LOG.warning('the cameras show no common horizon: which way is up is a guess, %s', how)
    up = up / np.linalg.norm(up)
    ahead = motion_from_camera[0, :3, 2] - (motion_from_camera[0, :3, 2] @ up) * up
    if np.linalg.norm(ahead) < 1e-6:
        ahead = np.cross(up, motion_from_camera[0, :3, 0])
    ahead /= np.linalg.norm(ahead)
    rotation = np.stack((ahead, np.cross(up, ahead), up))  # x: where the first camera looks
    if distance is None:
        usual = float(np.median(depths)) if len(depths) else 1.0
        scale, metres = USUAL_DISTANCE / usual, 'unknown: points are taken for 3 m away'
    else:
        places = []
        for name in (distance.first, distance.second):
            if name not in names:
                raise DataError(f"the known distance is that of image '{name}', which is not "
                                f'among the {len(names)} that have a pose, such as {names[0]}')
            places.append(motion_from_camera[list(names).index(name), :3, 3])
        apart = np.linalg.norm(places[0] - places[1])
        if not apart > 0:
            raise DataError(f"images '{distance.first}' and '{distance.second}' were taken in "
                            'one place; name two that are apart')
        scale, metres = distance.metres / apart, 'a known distance'
    middle = motion_from_camera[:, :3, 3].mean(0)
    return (Similarity(scale, rotation, -scale * rotation @ middle),
            {'scale_from': metres, 'up_from': how})


def _horizon(sideways: np.ndarray, upwards: np.ndarray) -> np.ndarray | None:
    """Give the normal (3,) of the plane that axes (K, 3) lie in, on the side of `upwards`, if any.

    A horizon shows in two directions; cameras that all look the same way show one.
    """
    _, sizes, axes = np.linalg.svd(sideways / math.sqrt(len(sideways)))
    if not (sizes[1] > 2 * sizes[2] and sizes[1] > 0.1 and sizes[2] < _LEVEL):
        return None
    return axes[2] * np.sign(axes[2] @ upwards.mean(0) or 1.0)
