"""
TUM trajectory files, `stamp tx ty tz qx qy qz qw` a line, and the quaternions they need.

A pose is map_from_camera: t is the camera centre in metres, q turns camera axes into map axes.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from nerfmatch_ros.errors import DataError
import numpy as np


def quaternion_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """Give (x, y, z, w) with w >= 0 of a rotation (3, 3)."""
    r = np.asarray(rotation, dtype=float)
    # The eigenvector of the largest eigenvalue of this matrix is the quaternion (Bar-Itzhack):
    # no branch, no cancellation, and the nearest rotation when r is rounded.
    k = np.array([
        [r[0, 0] - r[1, 1] - r[2, 2], r[1, 0] + r[0, 1], r[2, 0] + r[0, 2], r[2, 1] - r[1, 2]],
        [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], r[2, 1] + r[1, 2], r[0, 2] - r[2, 0]],
        [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
        [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
    ])
    quaternion = np.linalg.eigh(k)[1][:, -1]
    return -quaternion if quaternion[3] < 0 else quaternion


def rotation_from_quaternion(quaternion: Sequence[float]) -> np.ndarray:
    """Give the rotation (3, 3) of (x, y, z, w), which need not have unit length."""
    q = np.asarray(quaternion, dtype=float)
    length = np.linalg.norm(q)
    if not np.isfinite(length) or length < 1e-6:
        raise DataError(f'quaternion {q.tolist()} (x y z w) has no direction; give a unit one')
    x, y, z, w = q / length
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])


def pose_from_numbers(numbers: Sequence[float]) -> np.ndarray:
    """Give map_from_camera (4, 4) of the seven numbers tx ty tz qx qy qz qw."""
    values = np.asarray(numbers, dtype=float)
    if values.shape != (7,) or not np.isfinite(values).all():
        raise DataError(f'a pose is seven finite numbers tx ty tz qx qy qz qw, got {numbers}')
    pose = np.eye(4)
    pose[:3, :3] = rotation_from_quaternion(values[3:])
    pose[:3, 3] = values[:3]
    return pose


def parse_pose(text: str) -> np.ndarray:
    """Give map_from_camera (4, 4) of the text `tx ty tz qx qy qz qw`; commas may part numbers."""
    try:
        numbers = [float(word) for word in text.replace(',', ' ').split()]
    except ValueError as error:
        raise DataError(f"the pose '{text}' is not `tx ty tz qx qy qz qw`: {error}") from error
    return pose_from_numbers(numbers)


def numbers_from_pose(pose: np.ndarray) -> np.ndarray:
    """Give tx ty tz qx qy qz qw of map_from_camera (4, 4)."""
    return np.concatenate([pose[:3, 3], quaternion_from_rotation(pose[:3, :3])])


def format_tum(stamped_poses: Iterable[tuple[float | int, np.ndarray]]) -> str:
    """Give the text of a TUM file; a stamp is seconds (nanosecond digits) or a whole number."""
    lines = []
    for stamp, pose in stamped_poses:
        time = str(stamp) if isinstance(stamp, int) else f'{stamp:.9f}'
        numbers = ' '.join(f'{number:.9f}' for number in numbers_from_pose(pose))
        lines.append(f'{time} {numbers}\n')
    return ''.join(lines)


def read_tum(path: Path) -> list[tuple[float, np.ndarray]]:
    """Read stamps and poses; lines that are empty or begin with # are skipped."""
    try:
        lines = Path(path).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'cannot read the trajectory {path}: {error}') from error
    poses = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith('#'):
            continue
        try:
            stamp, *values = (float(word) for word in line.split())
            poses.append((stamp, pose_from_numbers(values)))
        except (ValueError, DataError) as error:
            raise DataError(
                f'{path}, line {number}: expected `stamp tx ty tz qx qy qz qw`: {error}',
            ) from error
    if not poses:
        raise DataError(f'the trajectory {path} holds no pose')
    return poses
