"""A single photograph as a query: its pixels, and the camera that took it."""

from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from nerfmatch_ros.config import load_yaml
from nerfmatch_ros.data.image_size import image_size
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera

CAMERA_FILE = 'transforms.json'


def read_photograph(
    path: Path, camera: Camera | None = None, map_cameras: Iterable[Camera] = (),
) -> PosedImage:
    """
    Give the photograph without a pose, with the first camera known for it.

    That is the camera given; else the one that a transforms.json beside or above the photograph
    has for it; else the one camera of the map that makes images of this size.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f'the image {path} does not exist')
    size = image_size(path)
    if size is None:
        raise DataError(f'{path} is not a readable picture; store it again as PNG or JPEG')
    camera = camera or recorded_camera(path) or camera_of_size(map_cameras, size, path)
    if (camera.width, camera.height) != size:
        raise DataError(
            f'{path} has {size[0]} x {size[1]} pixels but its camera makes {camera.width} x '
            f'{camera.height}; give the camera of this very image size (`--camera`)')
    return PosedImage(name=path.name, camera=camera, map_from_camera=None, path=path)


def read_camera(path: Path) -> Camera:
    """Read a camera from YAML: model, width, height, fx, fy, cx, cy, distortion."""
    values = load_yaml(path)
    if not isinstance(values, dict):
        raise DataError(
            f'{path} holds no camera; write `model: PINHOLE`, width, height, fx, fy, cx, cy and, '
            'where the lens distorts, `distortion: [...]`, one key a line')
    try:
        return Camera.from_dict(values)
    except DataError as error:
        raise DataError(f'{path}: {error}') from error


def recorded_camera(path: Path) -> Camera | None:
    """Give the camera of this file in the nearest transforms.json that names it."""
    path = path.resolve()
    for folder in path.parents:
        if (folder / CAMERA_FILE).is_file():
            camera = _cameras_of(folder).get(path)
            if camera is not None:
                return camera
    return None


def camera_of_size(cameras: Iterable[Camera], size: tuple[int, int], path: Path) -> Camera:
    """Give the one camera among these that makes images of this size."""
    distinct = list(dict.fromkeys(cameras))
    fitting = [camera for camera in distinct if (camera.width, camera.height) == size]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            f'the map has {len(fitting)} different cameras of {size[0]} x {size[1]} pixels; say '
            f'which one took {path}: `--camera FILE.yaml`')
    sizes = sorted({f'{camera.width} x {camera.height}' for camera in distinct})
    raise DataError(
        f'the camera of {path} ({size[0]} x {size[1]} pixels) is unknown: no {CAMERA_FILE} names '
        f'it and the map was made with {", ".join(sizes) or "no camera"}; give '
        '`--camera FILE.yaml`')


@lru_cache(maxsize=8)
def _cameras_of(folder: Path) -> dict[Path, Camera]:
    return {image.path.resolve(): image.camera
            for image in read_posed_images(folder) if image.path is not None}
