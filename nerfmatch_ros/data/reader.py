"""Posed images of a folder, whatever its format: every reader's images pass the checks here."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from nerfmatch_ros.data import cambridge, colmap, seven_scenes, transforms_json
from nerfmatch_ros.data.image_size import image_size
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.release_annotations import read_annotations, scene_and_split
from nerfmatch_ros.data.release_masks import with_masks
from nerfmatch_ros.errors import DataError

# Each has found(folder) -> bool and read(folder) -> list.
READERS = (transforms_json, colmap, cambridge, seven_scenes)
TEST_EVERY = 8  # without splits in the data, every 8th image by name is for testing


def read_posed_images(
    folder: Path, split: str | None = None, *, annotations: Path | None = None,
    masks: Path | None = None, positions: bool = False,
) -> list[PosedImage]:
    """
    Read the images of a folder, sorted by name; the pictures themselves are read later.

    split: 'train', 'test' or None for all. annotations: file of the published NeRFMatch, whose
    file_paths are relative to the folder. masks: folder, see `release_masks`; every image that
    is given must have them. positions: frames of a transforms.json may have a 'position' in place
    of a pose, which is then without rotation.
    """
    if split not in (None, 'train', 'test'):
        raise DataError(f"split '{split}' is unknown; use 'train', 'test' or none for all")
    folder = Path(folder)
    if folder.is_file() and annotations is None:  # transforms.json itself was named
        folder = folder.parent
    if not folder.is_dir():
        raise DataError(f'{folder} does not exist; give the folder with the posed images')
    if annotations is not None:
        images, source = read_annotations(annotations, folder), Path(annotations)
    else:
        reader, source = _reader_of(folder), folder
        images = reader.read(folder, positions=True) if positions and reader is transforms_json \
            else reader.read(folder)
        images.sort(key=lambda image: image.name)
    if not images:
        raise DataError(f'{source} lists no frames; register at least one image')
    twice = [name for name, count in Counter(image.name for image in images).items() if count > 1]
    if twice:
        raise DataError(f"{source} lists '{twice[0]}' more than once ({len(twice)} such names); "
                        'keep one frame for each picture')
    for image in images:
        check_picture(source, image)
    images = with_splits(images)
    chosen = [image for image in images if split in (None, image.split)]
    if not chosen:
        raise DataError(f"{source} has {len(images)} images, but none of split '{split}'; "
                        'mark frames with it or ask for the other split')
    if masks is None:
        return chosen
    scenes = [folder.resolve().name]
    if annotations is not None:
        scenes.append(scene_and_split(annotations)[0])
    return with_masks(chosen, masks, scenes)


def with_splits(images: list[PosedImage]) -> list[PosedImage]:
    """Mark every `TEST_EVERY`th image for testing, where no image has a split."""
    if any(image.split is not None for image in images):
        return images
    return [replace(image, split='train' if index % TEST_EVERY else 'test')
            for index, image in enumerate(images)]


def has_poses(folder: Path) -> bool:
    """Tell whether the folder is a data set with poses, of any format."""
    return any(reader.found(Path(folder)) for reader in READERS)


def _reader_of(folder: Path) -> ModuleType:
    reader = next((reader for reader in READERS if reader.found(folder)), None)
    if reader is None:
        raise DataError(f'{folder} holds no posed images; expected one of '
                        + ', '.join(reader.EXPECTED for reader in READERS))
    return reader


def check_picture(source: Path, image: PosedImage):
    """Refuse a picture that is missing, broken or not of its camera's size."""
    for path, what in ((image.path, 'picture'), (image.depth_path, 'depth file'),
                       (image.mask_path, 'mask')):
        if path is not None and not path.is_file():
            raise DataError(f"{source}: frame '{image.name}': {what} {path} does not exist; "
                            'put it there or take the frame out')
    size = image_size(image.path)
    if size is None:
        raise DataError(f"{source}: frame '{image.name}': {image.path} is not a readable picture; "
                        'store it again as PNG or JPEG')
    camera = image.camera
    if size != (camera.width, camera.height):
        raise DataError(
            f"{source}: frame '{image.name}' has {size[0]} x {size[1]} pixels, its camera "
            f'{camera.width} x {camera.height}; resize the picture, or give this frame its own '
            'intrinsics (w, h, fl_x, fl_y, cx, cy)')
