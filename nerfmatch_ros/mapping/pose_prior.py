"""What is known of poses before the photographs are compared: rough poses and their errors."""

from dataclasses import dataclass
import math

from nerfmatch_ros.data.posed_image import are_poses
from nerfmatch_ros.errors import DataError
import numpy as np
from scipy.spatial.transform import Rotation

CORRELATION = 1.0  # metres or radians of motion after which an odometry's error forgets itself
_LEAST = (5e-4, math.radians(0.02))  # metres, radians; no motion is measured better


@dataclass(frozen=True, eq=False)
class PosePrior:
    """Rough poses of K photographs, and how wrong they may be."""

    poses: np.ndarray  # (K, 4, 4) float64 map_from_camera
    translation: float  # metres, standard deviation of each pose along each axis
    rotation: float  # radians, the same about each axis
    # Where the poses come from odometry: standard deviation of the error of a motion as a share,
    # metres per metre along each axis, radians per metre or radian about each. Then the poses
    # hold only relative to one another, and `translation` and `rotation` do not count.
    # None: the errors of different poses have nothing to do with one another.
    odometry: float | None = None
    sequence: np.ndarray | None = None  # (K,) int64, rows of `poses` in the order of the way
    # Radians, standard deviation of the direction of the map's z axis in each given pose, where
    # something measured it (an IMU, a flat floor); it does not drift. None: nothing did.
    gravity: float | None = None

    def __post_init__(self):
        """Check the values."""
        poses = np.array(self.poses, np.float64)
        if poses.ndim != 3 or poses.shape[1:] != (4, 4) or not are_poses(poses).all():
            raise DataError(f'prior poses have shape {poses.shape} or some are no rigid motions; '
                            'give finite map_from_camera (K, 4, 4)')
        object.__setattr__(self, 'poses', poses)
        for name in ('translation', 'rotation', 'odometry', 'gravity'):
            value = getattr(self, name)
            if value is None and name in ('odometry', 'gravity'):
                continue
            if not (math.isfinite(value) and value > 0):
                raise DataError(f'{name} of the pose prior is {value}; a standard deviation is '
                                'a positive number')
        if self.sequence is not None:
            sequence = np.array(self.sequence, np.int64)
            if not np.array_equal(np.sort(sequence), np.arange(len(poses))):
                raise DataError(f'the sequence of {len(poses)} poses must name each row once')
            object.__setattr__(self, 'sequence', sequence)
        elif self.odometry is not None:
            raise DataError('poses from odometry need their order: give `sequence`, '
                            'the rows of the poses sorted by stamp')

    def motions(self) -> tuple[np.ndarray, np.ndarray]:
        """Give the motions (K - 1, 4, 4) along the way, and their sigmas (K - 1, 2).

        A motion is the second camera's pose in the first camera; sigmas are metres along and
        radians about each axis. The share of an odometry's error changes slowly, so over ways
        longer than CORRELATION errors sum up like a random walk; taking motions for independent,
        each has the variance that makes the sum right.
        """
        way = self.poses[self.sequence]
        motions = np.linalg.inv(way[:-1]) @ way[1:]
        metres = np.linalg.norm(motions[:, :3, 3], axis=-1)
        radians = Rotation.from_matrix(motions[:, :3, :3]).magnitude()
        most = np.maximum(metres, radians)
        sigmas = [self.odometry * np.sqrt(way * np.maximum(way, CORRELATION))
                  for way in (metres, most)]
        return motions, np.maximum(np.stack(sigmas, axis=-1), _LEAST)

    def drift(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Give how far (N,), metres, odometry drifts from frames first to second (N,) at worst.

        That is where the share of its error never changes; 0 without odometry.
        """
        if self.odometry is None:
            return np.zeros(len(first))
        centres = self.poses[self.sequence, :3, 3]
        steps = np.linalg.norm(np.diff(centres, axis=0), axis=-1)
        along = np.empty(len(self.poses))
        along[self.sequence] = np.concatenate(([0.0], np.cumsum(steps)))
        return self.odometry * np.abs(along[second] - along[first])

    def covariances(self) -> np.ndarray:
        """Give the covariances (K, 6, 6) of the given poses: position, rotation, map axes."""
        variance = np.repeat(np.square((self.translation, self.rotation)), 3)
        covariances = np.tile(np.diag(variance), (len(self.poses), 1, 1))
        if self.odometry is None:
            return covariances
        along = np.concatenate((np.zeros((1, 2)), np.cumsum(self.motions()[1] ** 2, axis=0)))
        covariances[self.sequence] = [np.diag(np.repeat(row, 3)) for row in along]
        return covariances
