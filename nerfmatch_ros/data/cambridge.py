"""Reader for a scene of Cambridge Landmarks as it is distributed.

`dataset_train.txt` and `dataset_test.txt` say which frames belong to the scene and to which split;
focal length and pose come from the VisualSFM file `reconstruction.nvm`, like in the evaluation of
the published NeRFMatch. As there, the lens is taken for a pinhole with the principal point in the
middle, although the file has a radial term, and frames that were placed absurdly are left out.
"""

from collections.abc import Iterator
import logging
from pathlib import Path

from nerfmatch_ros.data.image_size import image_size
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.tum import rotation_from_quaternion
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np

EXPECTED = 'Cambridge Landmarks (dataset_train.txt, dataset_test.txt, reconstruction.nvm)'
WIDTH, HEIGHT = 1920, 1080  # pixels, of the pictures that the focal lengths are of
FARTHEST = 1e5  # metres; a camera centre beyond is an error of the reconstruction

_LISTS = {'train': 'dataset_train.txt', 'test': 'dataset_test.txt'}
_RECONSTRUCTION = 'reconstruction.nvm'

logger = logging.getLogger(__name__)


def found(folder: Path) -> bool:
    """Tell whether the folder holds this format."""
    return (folder / _RECONSTRUCTION).is_file() and any(
        (folder / name).is_file() for name in _LISTS.values())


def read(folder: Path) -> list[PosedImage]:
    """Read the listed frames; those that the reconstruction lacks or misplaced are left out."""
    registered = _read_reconstruction(folder / _RECONSTRUCTION)
    images, left_out = [], []
    for split, name in _LISTS.items():
        if not (folder / name).is_file():
            continue
        for frame in _read_list(folder / name):
            focal, map_from_camera = registered.get(frame, (None, None))
            if focal is None or not (np.abs(map_from_camera) <= FARTHEST).all():
                left_out.append(frame)
                continue
            images.append(PosedImage(
                name=frame, camera=_camera(folder / frame, focal), path=folder / frame,
                map_from_camera=map_from_camera, split=split))
    if left_out:
        logger.warning('%s: %d frames are left out because %s has no sensible pose for them, '
                       'the first is %s', folder, len(left_out), _RECONSTRUCTION, left_out[0])
    return images


def _read_list(file: Path) -> list[str]:
    """Give the frames of a list: three lines of heading, then the picture and a pose a line."""
    return [words[0] for number, words in _filled_lines(file) if number > 3]


def _read_reconstruction(file: Path) -> dict[str, tuple[float, np.ndarray]]:
    """Give focal length, pixels, and map_from_camera of each picture of the NVM file.

    After `NVM_V3` and the number of cameras, each has a line: name, focal length, quaternion
    w x y z of camera_from_map, camera centre, radial distortion, 0. Names end in .jpg, the
    pictures in .png.
    """
    lines = _filled_lines(file)
    try:
        version, count = next(lines)[1], int(next(lines)[1][0])
        cameras_of_file = [next(lines) for _ in range(count)]
    except (StopIteration, ValueError):
        version, cameras_of_file = [''], []
    if not version[0].startswith('NVM_V3'):
        raise DataError(f'{file} is no whole NVM file (NVM_V3, number of cameras, a line each); '
                        'unpack it again')
    cameras = {}
    for number, words in cameras_of_file:
        try:
            focal, w, x, y, z, *centre = (float(word) for word in words[1:9])
            pose = np.eye(4)
            pose[:3, :3] = rotation_from_quaternion((x, y, z, w)).T
            pose[:3, 3] = centre
        except (ValueError, DataError) as error:
            raise DataError(f'{file}, line {number}: expected name, focal length, quaternion, '
                            f'centre: {error}') from error
        cameras[str(Path(words[0]).with_suffix('.png').as_posix())] = focal, pose
    return cameras


def _camera(path: Path, focal: float) -> Camera:
    """Make the camera of a picture, which may be smaller than the distributed one."""
    size = image_size(path) if path.is_file() else (WIDTH, HEIGHT)  # the reader names what lacks
    if size is None:
        raise DataError(f'{path} is not a readable picture; unpack it again')
    width, height = size
    if abs(width * HEIGHT / (height * WIDTH) - 1) > 0.01:
        raise DataError(f'{path} has {width} x {height} pixels; the focal lengths are of '
                        f'{WIDTH} x {HEIGHT}, so pictures may be resized but not cropped')
    return Camera('PINHOLE', width, height, focal * width / WIDTH, focal * height / HEIGHT,
                  width / 2 - 0.5, height / 2 - 0.5)


def _filled_lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Give number and words of each line with any; read as far as is asked for."""
    try:
        with open(file, encoding='utf-8') as lines:
            for number, line in enumerate(lines, start=1):
                if words := line.split():
                    yield number, words
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'cannot read {file}: {error}') from error
