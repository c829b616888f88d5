"""Pictures of the map's field along a trajectory."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.files import written_atomically
from nerfmatch_ros.geometry.camera import Camera
import numpy as np


def render_views(
    localizer: Any, camera: Camera, poses: Iterable[np.ndarray], output: Path,
) -> list[Path]:
    """
    Write one PNG for each pose, 000000.png and on, and give the paths.

    localizer: a `Localizer`; poses: (4, 4) map_from_camera, metres.
    """
    paths = []
    for index, pose in enumerate(poses):
        path = Path(output) / f'{index:06d}.png'
        picture = cv2.cvtColor(localizer.render(camera, pose), cv2.COLOR_RGB2BGR)
        with written_atomically(path) as temporary:
            if not cv2.imwrite(str(temporary), picture):
                raise DataError(f'cannot write the picture {path}')
        paths.append(path)
    return paths


def default_camera(cameras: Sequence[Camera]) -> Camera:
    """Give the camera that made most of the map's images."""
    cameras = list(cameras)
    return max(dict.fromkeys(cameras), key=cameras.count)
