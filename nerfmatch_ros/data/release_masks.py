"""Masks of sky and of what moves, in the folders in which NeRFMatch was published with them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError

SKY_FOLDER = 'masks_bg'
TRANSIENT_FOLDER = 'masks_trnz_cars'


def with_masks(
    images: Sequence[PosedImage], folder: Path, scenes: Sequence[str] = (),
) -> list[PosedImage]:
    """
    Give the images with the masks that `folder` has for them.

    They lie in `masks_bg` (sky) and `masks_trnz_cars` (what moves), or in one of the two, at the
    images' names, white where masked. scenes: names that a folder in between may have.
    """
    folder = Path(folder)
    sky = _folder_of_scene(folder / SKY_FOLDER, scenes)
    transient = _folder_of_scene(folder / TRANSIENT_FOLDER, scenes)
    if sky is None and transient is None:
        raise DataError(f"{folder} holds no masks; give the folder with '{SKY_FOLDER}' and "
                        f"'{TRANSIENT_FOLDER}'")
    return [replace(image, sky_path=_mask(sky, image), transient_path=_mask(transient, image))
            for image in images]


def _folder_of_scene(folder: Path, scenes: Sequence[str]) -> Path | None:
    """Give the folder, or the one of the scene in it; None where there is neither."""
    if not folder.is_dir():
        return None
    return next((folder / scene for scene in scenes if (folder / scene).is_dir()), folder)


def _mask(folder: Path | None, image: PosedImage) -> Path | None:
    if folder is None:
        return None
    path = folder / image.name
    for candidate in (path, path.with_suffix('.png')):
        if candidate.is_file():
            return candidate
    raise DataError(f"image '{image.name}': mask {path} does not exist; put it there, or leave "
                    'the masks out')
