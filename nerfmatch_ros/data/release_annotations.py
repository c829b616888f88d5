"""Reader for the annotations of the published NeRFMatch, `transforms_<scene>_<split>.json`.

Unlike in other files of that name, the camera axes are OpenCV's and the intrinsics are a matrix.
The principal point counts from the corner of the first pixel and is converted here.
"""

import json
from pathlib import Path
import re
from typing import Any

from nerfmatch_ros.data.posed_image import checked_pose, PosedImage
from nerfmatch_ros.data.release_masks import with_masks
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np

_FILE_NAME = re.compile(r'(?:transforms_)?(?P<scene>.+?)(?:_(?P<split>train|test))?')


def read_annotations(
    json_file: Path, image_folder: Path, *, masks: Path | None = None,
) -> list[PosedImage]:
    """
    Read the frames, sorted by their file_path, which is their name and relative to image_folder.

    masks: folder with `masks_bg` and `masks_trnz_cars`. The split is that of the file's name.
    """
    json_file, image_folder = Path(json_file), Path(image_folder)
    scene, split = scene_and_split(json_file)
    images = [_read_frame(json_file, index, frame, image_folder, split)
              for index, frame in enumerate(_frames(json_file))]
    images.sort(key=lambda image: image.name)
    if masks is not None:
        images = with_masks(images, masks, (scene, image_folder.resolve().name))
    return images


def scene_and_split(json_file: Path) -> tuple[str, str | None]:
    """Take the name of the scene, and the split where there is one, from the file's name."""
    parts = _FILE_NAME.fullmatch(Path(json_file).stem)
    return parts['scene'], parts['split']


def _frames(file: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
    except OSError as error:
        raise DataError(f'cannot read the annotations {file}: {error.strerror}') from error
    except (ValueError, RecursionError) as error:
        raise DataError(f'{file} is not valid JSON: {error}; download it again') from error
    frames = content.get('frames') if isinstance(content, dict) else None
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise DataError(f"{file} has no list 'frames'; give transforms_<scene>_<split>.json")
    return frames


def _read_frame(
    file: Path, index: int, frame: dict, image_folder: Path, split: str | None,
) -> PosedImage:
    name = frame.get('file_path')
    if not isinstance(name, str) or not name:
        raise DataError(f'{file}: frame {index} has file_path {name!r}; name its picture')
    where = f"{file}: frame {index} '{name}'"
    missing = [key for key in ('intrinsics', 'width', 'height', 'transform_matrix')
               if key not in frame]
    if missing:
        raise DataError(f"{where} has no '{missing[0]}'; other files of this kind are read "
                        'without --annotations')
    return PosedImage(
        name=name, camera=_camera(where, frame), path=image_folder / name, split=split,
        map_from_camera=checked_pose(frame['transform_matrix'], where))


def _camera(where: str, frame: dict) -> Camera:
    try:
        matrix = np.array(frame['intrinsics'], np.float64)
        pinhole = matrix.shape == (3, 3) and np.array_equal(
            matrix[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]], (0, 0, 0, 0, 1))
    except (TypeError, ValueError):
        pinhole = False
    if not pinhole:
        raise DataError(f"{where} has intrinsics {frame['intrinsics']!r}; a matrix "
                        '[[fx, 0, cx], [0, fy, cy], [0, 0, 1]] is needed')
    try:
        return Camera('PINHOLE', frame['width'], frame['height'], matrix[0, 0], matrix[1, 1],
                      matrix[0, 2] - 0.5, matrix[1, 2] - 0.5)
    except DataError as error:
        raise DataError(f'{where}: {error}') from error
