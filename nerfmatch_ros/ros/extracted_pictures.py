"""The pictures of a folder of extracted frames, also those whose pose is not known."""

from dataclasses import replace
from pathlib import Path

from nerfmatch_ros.data import transforms_json
from nerfmatch_ros.data.photograph import read_camera
from nerfmatch_ros.data.picture_folder import read_pictures
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.reader import check_picture, with_splits
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros.frame_folder import PICTURES

CAMERA_FILE = 'camera.yaml'  # of frames none of which has a pose


def extracted_pictures(folder: Path, split: str | None = None) -> list[PosedImage]:
    """Give what was extracted, sorted by name; `map_from_camera` is None where it is not known.

    split: 'train', 'test', 'all' or None for all, as of other folders.
    """
    if (folder / CAMERA_FILE).is_file():
        images = [replace(image, name=f'{PICTURES}/{image.name}') for image in
                  read_pictures(folder / PICTURES, read_camera(folder / CAMERA_FILE))]
    else:
        images = [*transforms_json.read(folder), *transforms_json.read_without_pose(folder)]
        images.sort(key=lambda image: image.name)
        for image in images:
            check_picture(folder, image)
    chosen = [image for image in with_splits(images) if split in (None, 'all', image.split)]
    if not chosen:
        raise DataError(f"{folder} has {len(images)} pictures, none of split '{split}'; "
                        'ask for the other split')
    return chosen
