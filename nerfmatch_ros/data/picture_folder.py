"""Pictures of a folder, nothing known of their poses, and perhaps nothing of their camera."""

from dataclasses import replace
from pathlib import Path

from nerfmatch_ros.data.image_size import image_size
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.reader import has_poses, read_posed_images, with_splits
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from PIL import Image

ENDINGS = ('.png', '.jpg', '.jpeg')
_ORIENTATION = 0x0112  # EXIF
# By that number, the direction up; of two that mirror one another, it is the same.
_UP = {1: (0.0, -1.0, 0.0), 2: (0.0, -1.0, 0.0), 3: (0.0, 1.0, 0.0), 4: (0.0, 1.0, 0.0),
       5: (-1.0, 0.0, 0.0), 6: (-1.0, 0.0, 0.0), 7: (1.0, 0.0, 0.0), 8: (1.0, 0.0, 0.0)}
_USUAL_FOCAL = 1.2  # times the longer side, of cameras that say nothing


def without_poses(
    folder: Path, split: str | None = None, camera: Camera | None = None,
) -> tuple[list[PosedImage], bool]:
    """Give a folder's images without poses, and whether their cameras are known.

    A data set with poses gives its cameras and splits, and its poses are left out; any other
    folder its pictures, which `camera` took. split: 'train', 'test' or 'all'; None: 'train' of a
    data set, and all pictures of another folder. Without splits in the data, every eighth image by
    name is for testing.
    """
    if camera is None and has_poses(folder):
        images = read_posed_images(folder, None if split == 'all' else split or 'train')
        return [replace(image, map_from_camera=None) for image in images], True
    images = with_splits(read_pictures(folder, camera))
    return ([image for image in images if split in (None, 'all', image.split)],
            camera is not None)


def read_pictures(folder: Path, camera: Camera | None = None) -> list[PosedImage]:
    """Give the pictures of a folder or its subfolders, sorted by name, without poses.

    camera: that took all of them; None: each has the camera of a usual lens, a stand-in that is
    to be calibrated. Names are paths relative to the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f'{folder} does not exist; give the folder with the pictures')
    paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ENDINGS
                   and not _is_ours(path.relative_to(folder), folder))
    if not paths:
        raise DataError(f'{folder} holds no pictures; put PNG or JPEG files there')
    images = []
    for path in paths:
        size = image_size(path)
        if size is None:
            raise DataError(f'{path} is not a readable picture; store it again as PNG or JPEG, '
                            'or take it out')
        if camera is not None and size != (camera.width, camera.height):
            raise DataError(f'{path} has {size[0]} x {size[1]} pixels, the camera given makes '
                            f'{camera.width} x {camera.height}; give the camera of this size, or '
                            'none to have it calibrated')
        images.append(PosedImage(name=path.relative_to(folder).as_posix(),
                                 camera=camera or usual_camera(*size), path=path))
    return images


def _is_ours(path: Path, folder: Path) -> bool:
    """Tell whether a path in the folder is hidden, or lies in a map or in an unfinished build."""
    inside = [folder.joinpath(*path.parts[:k]) for k in range(1, len(path.parts))]
    return any(part.startswith('.') for part in path.parts) or any(
        place.name.endswith('.build') or (place / 'map.yaml').is_file() for place in inside)


def up_in_picture(path: Path | None) -> tuple[float, float, float]:
    """Give the direction up, camera axes, as the photographer held the camera (EXIF orientation).

    Pixels and camera stay as they are stored. Pictures that say nothing were held as they are.
    """
    orientation = 1
    if path is not None:
        with Image.open(path) as picture:
            orientation = picture.getexif().get(_ORIENTATION, 1)
    return _UP.get(orientation, _UP[1])


def usual_camera(width: int, height: int) -> Camera:
    """Make a stand-in for an unknown camera: no distortion, a usual opening angle."""
    focal = _USUAL_FOCAL * max(width, height)
    return Camera('PINHOLE', width, height, focal, focal, (width - 1) / 2, (height - 1) / 2)
