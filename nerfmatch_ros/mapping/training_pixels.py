"""The pixels of training photographs in one file, mapped into memory where they are drawn.

Nine hundred photographs of 640 x 480 are 830 MB of colours and 3.3 GB of ray directions; the file
holds the colours, and directions only of cameras with a lens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import working_view
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.files import written_atomically
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.tensor_file import map_tensors, Pieces, write_tensors
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PixelSize:
    """How photographs are reduced for the training of a field."""

    longest_side: int  # pixels, of photographs that keep their shape
    size: tuple[int, int] | None = None  # (width, height) they are squeezed to instead
    white_sky: bool = False  # paint sky, as a white background is seen; else it is not learned


def working_camera(camera: Camera, longest_side: int) -> Camera:
    """Scale a camera down so that its longer side has at most `longest_side` pixels."""
    scale = min(1.0, longest_side / max(camera.width, camera.height))
    return camera.scaled_to(round(camera.width * scale), round(camera.height * scale))


def working_rgb(image: PosedImage, camera: Camera) -> np.ndarray:
    """Read the pixels (H, W, 3) uint8 of an image at the size of its working camera."""
    rgb = image.rgb()
    if rgb.shape[:2] == (camera.height, camera.width):
        return rgb
    return cv2.resize(rgb, (camera.width, camera.height), interpolation=cv2.INTER_AREA)


def pixel_camera(camera: Camera, how: PixelSize) -> Camera:
    """Give the camera of the reduced photograph."""
    if how.size is None:
        return working_camera(camera, how.longest_side)
    return working_view(camera, camera.fx, how.longest_side, how.size).camera


def _mask(image: PosedImage, mask: np.ndarray | None, how: PixelSize) -> np.ndarray | None:
    """Reduce a mask (H, W) bool as its photograph is."""
    if mask is None:
        return None
    if how.size is not None:
        picture = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
        view = working_view(image.camera, image.camera.fx, how.longest_side, how.size)
        return view.picture(picture)[..., 0] > 127
    camera = pixel_camera(image.camera, how)
    return cv2.resize(mask.astype(np.uint8), (camera.width, camera.height),
                      interpolation=cv2.INTER_NEAREST) > 0


def reduced_rgb(image: PosedImage, how: PixelSize) -> np.ndarray:
    """Give the colours (H, W, 3) uint8 that a field is to show."""
    if how.size is None:
        rgb = working_rgb(image, pixel_camera(image.camera, how))
    else:
        rgb = working_view(image.camera, image.camera.fx, how.longest_side, how.size).picture(
            image.rgb())
    sky = _mask(image, image.sky_mask(), how) if how.white_sky else None
    return rgb if sky is None else np.where(sky[..., None], np.uint8(255), rgb)


def usable_pixels(image: PosedImage, how: PixelSize) -> np.ndarray:
    """Tell which pixels (H W,) count, uint8 0 or 1."""
    camera = pixel_camera(image.camera, how)
    usable = np.ones((camera.height, camera.width), bool)
    mask = _mask(image, image.valid_mask(), how)
    if mask is not None:
        usable &= mask
    # The sky has no surface; only a white background can show it.
    sky = None if how.white_sky else _mask(image, image.sky_mask(), how)
    if sky is not None:
        usable &= ~sky
    return usable.reshape(-1).astype(np.uint8)


def _depth(image: PosedImage, how: PixelSize) -> np.ndarray:
    """Give the depth (H W,) float32 that a photograph came with, metres, 0 where unknown."""
    camera, depth = pixel_camera(image.camera, how), image.depth_map()
    if depth is None or not (how.size is None or image.camera.is_pinhole):
        return np.zeros(camera.width * camera.height, np.float32)
    return cv2.resize(depth, (camera.width, camera.height),
                      interpolation=cv2.INTER_NEAREST).reshape(-1)


def write_pixels(path: Path, images: list[PosedImage], how: PixelSize) -> None:
    """Write the pixels of photographs, one photograph in memory at a time."""
    cameras = [pixel_camera(image.camera, how) for image in images]
    count = sum(camera.width * camera.height for camera in cameras)

    def each(kind: torch.dtype, columns: tuple[int, ...], values) -> Pieces:
        return Pieces(kind, (count, *columns), (
            torch.from_numpy(np.ascontiguousarray(values(image, how))).reshape(-1, *columns)
            for image in images))

    tensors = {'colours': each(torch.uint8, (3,), reduced_rgb)}
    if any(image.mask_path or image.transient_path
           or (image.sky_path and not how.white_sky) for image in images):
        tensors['usable'] = each(torch.uint8, (), usable_pixels)
    if any(image.depth is not None or image.depth_path for image in images):
        tensors['depths'] = each(torch.float32, (), _depth)
    lenses = lens_cameras(cameras)
    if lenses:
        tensors['directions'] = Pieces(
            torch.float32, (sum(c.width * c.height for c in lenses), 3), _directions(lenses))
    with written_atomically(path) as temporary:
        write_tensors(temporary, tensors)


def lens_cameras(cameras: list[Camera]) -> list[Camera]:
    """Choose the distinct cameras whose rays need more than a formula."""
    return [camera for camera in dict.fromkeys(cameras) if not camera.is_pinhole]


def _directions(cameras: list[Camera]) -> Iterator[Tensor]:
    for camera in cameras:
        yield camera.rays(camera.pixel_grid()).float()


def map_pixels(path: Path) -> dict[str, Tensor]:
    """Map what `write_pixels` wrote; it takes memory only where it is looked at."""
    tensors = map_tensors(path)
    if 'usable' in tensors and not tensors['usable'].any():
        raise DataError('the masks leave no pixel of any photograph to train on; check whether '
                        'they are inverted')
    return tensors
