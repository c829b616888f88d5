"""Pixels of photographs whose poses are still moving: drawn by frame, sharp or blurred.

Letters: K photographs, B frames of a step, P pixels of each of them.
"""

from dataclasses import dataclass

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.mapping.training_pixels import (
    pixel_camera,
    PixelSize,
    reduced_rgb,
    usable_pixels,
)
import numpy as np
import torch
from torch import Tensor

BLUR_REACH = 2.0  # standard deviations of a smoothing beyond which it counts for nothing


@dataclass(frozen=True)
class DrawnPixels:
    """Pixels of some frames, where they look and what they show."""

    frames: Tensor  # (B,) int64 indices of photographs
    plane: Tensor  # (B, P, 2) place in the picture, [-1, 1] along its longer side
    directions: Tensor  # (B, P, 3) unit, camera frame
    colour: Tensor  # (B, P, 3) in [0, 1]


class RegistrationPixels:
    """The reduced photographs and the rays of their pixels, in memory.

    A photograph of 160 x 120 takes 0.1 MB; cameras of the same intrinsics share their rays.
    """

    def __init__(self, images: list[PosedImage], how: PixelSize, device: torch.device | str):
        cameras = [pixel_camera(image.camera, how) for image in images]
        self.device = torch.device(device)
        self.pixel_angle = float(np.mean([1 / camera.fx for camera in cameras]))
        self._pictures = [reduced_rgb(image, how) for image in images]
        self._masks = [usable_pixels(image, how).reshape(camera.height, camera.width)
                       for image, camera in zip(images, cameras)]
        empty = [image.name for image, mask in zip(images, self._masks) if not mask.any()]
        if empty:
            raise DataError(f"the masks leave no pixel of image '{empty[0]}' ({len(empty)} such "
                            'images) to register it by; check whether they are inverted')
        sizes = [camera.width * camera.height for camera in cameras]
        self._starts = self._starts_of(sizes)
        self._widths = torch.tensor([camera.width for camera in cameras], device=device)
        self._heights = torch.tensor([camera.height for camera in cameras], device=device)
        distinct = list(dict.fromkeys(cameras))
        tables = [camera.rays(camera.pixel_grid()).float() for camera in distinct]
        starts = dict(zip(distinct, self._starts_of([len(table) for table in tables]).tolist()))
        self._directions = torch.cat(tables).to(device)
        self._tables = torch.tensor([starts[camera] for camera in cameras], device=device)
        self.cameras = torch.tensor(
            [distinct.index(camera) for camera in cameras], device=device)  # (K,) which took each
        self._blur = None

    def __len__(self) -> int:
        return len(self._pictures)

    def _starts_of(self, sizes: list[int]) -> Tensor:
        return torch.from_numpy(np.cumsum([0, *sizes[:-1]])).to(self.device)

    def _smooth(self, blur: float) -> None:
        """Keep the photographs smoothed by `blur` pixels, and which pixels are then right.

        Near a border or a masked pixel, smoothed colours hold what was not seen: such pixels
        would pull at the poses.
        """
        if blur == self._blur:
            return
        colours, places = [], []
        for picture, mask in zip(self._pictures, self._masks):
            sound = mask
            if blur > 0:
                picture = cv2.GaussianBlur(picture, (0, 0), blur)
                reach = 2 * round(BLUR_REACH * blur) + 1
                sound = cv2.erode(mask, np.ones((reach, reach), np.uint8),
                                  borderType=cv2.BORDER_CONSTANT, borderValue=0)
            colours.append(picture.reshape(-1, 3))
            places.append(np.flatnonzero(sound if sound.any() else mask))
        counts = [len(place) for place in places]
        self._usable_starts = self._starts_of(counts)
        self._usable_counts = torch.tensor(counts, device=self.device)
        self._usable = torch.from_numpy(
            np.concatenate(places).astype(np.int32)).to(self.device)
        self._colours = torch.from_numpy(np.concatenate(colours)).to(self.device)
        self._blur = blur

    def draw(
        self, frames: int, pixels: int, generator: torch.Generator, *, blur: float = 0.0,
    ) -> DrawnPixels:
        """Draw `pixels` of each of `frames` photographs at random; of all where there are fewer.

        blur: standard deviation of the smoothing, pixels of the reduced photographs; the smoothed
        pictures are kept until another value is asked for.
        """
        self._smooth(blur)
        count = len(self)
        options = {'generator': generator, 'device': self.device}
        chosen = torch.arange(count, device=self.device) if frames >= count \
            else torch.randperm(count, **options)[:frames]
        share = torch.rand(len(chosen), pixels, **options)
        counts = self._usable_counts[chosen][:, None]
        picked = torch.minimum((share * counts).long(), counts - 1)
        place = self._usable[self._usable_starts[chosen][:, None] + picked].long()
        colour = self._colours[self._starts[chosen][:, None] + place]
        return DrawnPixels(chosen, self._plane(chosen, place), self._rays(chosen, place),
                           colour.float() / 255)

    def grid(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Give an even grid of each photograph's pixels, P = rows x columns of them.

        Returns plane (K, P, 2) and directions (K, P, 3), as of `DrawnPixels`.
        """
        def even(sizes: Tensor, count: int) -> Tensor:
            share = (torch.arange(count, device=self.device) + 0.5) / count
            return (share * sizes[:, None]).long()

        frames = torch.arange(len(self), device=self.device)
        y, x = even(self._heights, rows), even(self._widths, columns)
        place = (y[:, :, None] * self._widths[:, None, None] + x[:, None, :]).flatten(1)
        return self._plane(frames, place), self._rays(frames, place)

    def _plane(self, frames: Tensor, place: Tensor) -> Tensor:
        width, height = self._widths[frames][:, None], self._heights[frames][:, None]
        pixel = torch.stack((place % width, place // width), dim=-1)
        size = torch.stack((width, height), dim=-1)
        return (2 * pixel + 1 - size) / size.amax(-1, keepdim=True)

    def _rays(self, frames: Tensor, place: Tensor) -> Tensor:
        return self._directions[self._tables[frames][:, None] + place]
