"""The last pose in a file, so that a restarted localizer looks where the robot was."""

from dataclasses import asdict, dataclass, fields
import json
import math
from pathlib import Path
from typing import Any

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.files import write_text
from nerfmatch_ros.localization.body_pose import usable_covariance
from nerfmatch_ros.localization.rigid_motion import is_pose
import numpy as np

FORMAT = 'nerfmatch_ros pose'
_MAX_BYTES = 1 << 16  # a pose takes 2 kB


@dataclass(frozen=True, eq=False)
class SavedPose:
    """A pose, and what must still hold for it to mean anything."""

    map_sha256: str  # of the map it is in
    frame_id: str  # of that map
    body_frame_id: str  # whose pose it is
    unix_time: float  # seconds, when it was true
    map_from_base: np.ndarray  # (4, 4) float64, metres
    covariance: np.ndarray  # (6, 6) x, y, z, rx, ry, rz; metres, radians, map axes


def save_pose(path: Path, saved: SavedPose):
    """Write a pose whole or not at all; DataError says why it cannot be written."""
    content = {'format': FORMAT, **asdict(saved)}
    content['map_from_base'] = np.asarray(saved.map_from_base).tolist()
    content['covariance'] = np.asarray(saved.covariance).tolist()
    try:
        write_text(Path(path), json.dumps(content, indent=1, allow_nan=False) + '\n')
    except (OSError, ValueError) as error:
        raise DataError(f'the pose cannot be saved at {path}: {error}; choose a file in a folder '
                        'that can be written, with space left') from error


def load_pose(path: Path, *, map_sha256: str, max_age: float, now: float) -> SavedPose:
    """
    Read a pose that is in the map map_sha256 and at most max_age seconds old.

    now: seconds, unix time. DataError says why there is no such pose.
    """
    path = Path(path)
    remedy = 'the localizer starts without it'
    saved = _checked(_read(path, remedy), f'saved pose {path}', remedy)
    if saved.map_sha256 != map_sha256:
        raise DataError(f'saved pose {path} lies in map {saved.map_sha256[:12]}, not in '
                        f'{map_sha256[:12]}; {remedy}')
    age = now - saved.unix_time
    if age > max_age:
        raise DataError(f'saved pose {path} is {age:.1f} s old, at most {max_age:g} s are '
                        f'allowed; {remedy}')
    if age < 0:
        raise DataError(f'saved pose {path} is from {-age:.1f} s in the future: the clock was '
                        f'set back, so its age is unknown; {remedy}')
    return saved


def _read(path: Path, remedy: str) -> Any:
    try:
        with open(path, 'rb') as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f'saved pose {path} cannot be read: {error}; {remedy}') from error
    if len(raw) > _MAX_BYTES:
        raise DataError(f'saved pose {path} is larger than {_MAX_BYTES} bytes, so it is none; '
                        f'{remedy}')
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(f'saved pose {path} is truncated or damaged: {error}; {remedy}') from error


def _checked(content: Any, where: str, remedy: str) -> SavedPose:
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise DataError(f"{where} does not say format '{FORMAT}'; {remedy}")
    missing = [field.name for field in fields(SavedPose) if field.name not in content]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; {remedy}")
    for name in ('map_sha256', 'frame_id', 'body_frame_id'):
        if not isinstance(content[name], str):
            raise DataError(f'{where}: {name} is {content[name]!r}, not a text; {remedy}')
    try:
        unix_time = float(content['unix_time'])
        pose = np.array(content['map_from_base'], np.float64)
        covariance = np.array(content['covariance'], np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f'{where} holds no numbers where it must: {error}; {remedy}') from error
    if not math.isfinite(unix_time):
        raise DataError(f'{where}: unix_time is {unix_time}; {remedy}')
    if not is_pose(pose):
        raise DataError(f'{where}: map_from_base is no rigid motion (4, 4); {remedy}')
    if not usable_covariance(covariance):
        raise DataError(f'{where}: covariance is not (6, 6) and positive definite; {remedy}')
    return SavedPose(content['map_sha256'], content['frame_id'], content['body_frame_id'],
                     unix_time, pose, covariance)
