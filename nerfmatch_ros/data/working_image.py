"""The picture a matcher sees: a pinhole view of the photograph at the map's own focal length.

A network that learned at one scale works best at that scale, so a query of another resolution or
lens is brought to it; pixels found there are carried back to the photograph for the pose.
"""

from dataclasses import dataclass

import cv2
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
from PIL import Image
import torch
from torch import Tensor

SIDE_MULTIPLE = 16  # the encoders halve a picture four times
_SQUARE = 0.01  # pixels whose sides differ by no more are square; lenses are not known better


@dataclass(frozen=True)
class WorkingView:
    """A pinhole camera and how to reach it from the photograph's own camera."""

    source: Camera
    scaled: Camera  # the photograph's camera after resizing
    camera: Camera  # PINHOLE, sides multiples of 16, same axes and centre as the photograph's
    squeezed: bool = False  # to a size of its own; as the published code resizes photographs

    def pixels_in_source(self, pixels: Tensor) -> Tensor:
        """Carry pixels (N, 2) of the working picture to the photograph."""
        return self.source.project(self.camera.rays(pixels.double()))

    def picture(self, rgb: np.ndarray) -> np.ndarray:
        """Resample a photograph (H, W, 3) uint8 to the working picture (h, w, 3) uint8."""
        rgb = _squeezed(rgb, self.scaled) if self.squeezed else _resized(rgb, self.scaled)
        if self.camera.model == self.scaled.model:
            return np.ascontiguousarray(rgb[:self.camera.height, :self.camera.width])
        return cv2.remap(rgb, *self._remap, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    @property
    def _remap(self) -> tuple[np.ndarray, np.ndarray]:
        source = self.scaled.project(self.camera.rays(self.camera.pixel_grid().double()))
        source = source.float().numpy().reshape(self.camera.height, self.camera.width, 2)
        return source[..., 0], source[..., 1]


def _resized(rgb: np.ndarray, camera: Camera) -> np.ndarray:
    if rgb.shape[:2] == (camera.height, camera.width):
        return rgb
    height, width = rgb.shape[:2]
    if (camera.width - width) * (camera.height - height) < 0:  # pixels are made square
        rgb = cv2.resize(rgb, (min(camera.width, width), min(camera.height, height)),
                         interpolation=cv2.INTER_AREA)
    # Averaging areas makes blocks where there is more than one pixel for each of the source.
    interpolation = cv2.INTER_AREA if camera.width < rgb.shape[1] else cv2.INTER_LINEAR
    return cv2.resize(rgb, (camera.width, camera.height), interpolation=interpolation)


def _squeezed(rgb: np.ndarray, camera: Camera) -> np.ndarray:
    picture = Image.fromarray(rgb).resize(
        (camera.width, camera.height), Image.Resampling.LANCZOS)
    return np.array(picture)  # its own memory, which torch wants to be writable


def working_view(
    camera: Camera, focal: float, longest_side: int, size: tuple[int, int] | None = None, *,
    square: bool = False,
) -> WorkingView:
    """Choose the working picture of a camera.

    focal: pixels, the map's working focal length; longest_side: pixels, never exceeded, so a
    much longer lens than the map's is shown smaller rather than cropped; size: (width, height)
    to which every picture is squeezed instead, whatever its shape and lens, as in the paper;
    square: make pixels square that are not, so that both axes have the same focal length
    """
    if size is not None:
        check_working_size(size)
        scaled = camera.scaled_to(*size)
        pinhole = Camera('PINHOLE', *size, scaled.fx, scaled.fy, scaled.cx, scaled.cy)
        return WorkingView(camera, pinhole if camera.is_pinhole else scaled, pinhole,
                           squeezed=True)
    taller = camera.fx / camera.fy if square else 1.0
    if abs(taller - 1) <= _SQUARE:
        taller = 1.0
    scale = min(focal / camera.fx, longest_side / max(camera.width, taller * camera.height))
    width = max(SIDE_MULTIPLE, round(camera.width * scale))
    height = max(SIDE_MULTIPLE, round(camera.height * scale * taller))
    scaled = camera.scaled_to(width, height)
    pinhole = Camera('PINHOLE', width - width % SIDE_MULTIPLE, height - height % SIDE_MULTIPLE,
                     scaled.fx, scaled.fy, scaled.cx, scaled.cy)
    if camera.is_pinhole:
        scaled = Camera('PINHOLE', width, height, scaled.fx, scaled.fy, scaled.cx, scaled.cy)
    return WorkingView(camera, scaled, pinhole)


def check_working_size(size: tuple[int, int]) -> None:
    """Refuse a size (width, height) that the encoders cannot divide into cells."""
    if len(size) != 2 or any(side < 8 or side % 8 for side in size):
        raise ConfigError(f'working_size is {list(size)}; give width and height in pixels, both '
                          'multiples of 8, such as [480, 480]')


def working_focal(cameras: list[Camera], longest_side: int) -> float:
    """Focal length, pixels, at which the median camera's longer side is `longest_side`."""
    return float(np.median([
        camera.fx * min(1, longest_side / max(camera.width, camera.height))
        for camera in cameras]))


def as_tensor(picture: np.ndarray) -> Tensor:
    """Turn a picture (h, w, 3) uint8 into (3, h, w) float32 in [0, 1]."""
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255
