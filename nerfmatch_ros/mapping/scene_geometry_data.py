"""Training batches of scene geometry: photographs as turned and zoomed cameras would see them.

Turning a camera about its centre and changing its focal length moves pixels by a homography, so
the poses that go with the pictures stay exact whatever the scene.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import working_focal, working_view, WorkingView
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.augmentation import AugmentationConfig, change_light
from nerfmatch_ros.mapping.picture_cache import PictureCache
from nerfmatch_ros.scene_geometry import cell_rays
import numpy as np
from scipy.spatial.transform import Rotation
import torch
from torch import Tensor

_COARSER = 4  # masks are kept so much coarser than the photographs
_FINER = 1.5  # pictures are kept so much finer than the network sees them, for zooms


@dataclass(frozen=True)
class _Source:
    """How a photograph is kept; `PictureCache` asks for its view."""

    view: WorkingView


@dataclass(frozen=True)
class GeometryBatch:
    """B pictures of one size, what their cells look at, and the poses."""

    pictures: Tensor  # (B, 3, h, w) in [0, 1] (noise may exceed it)
    rays: Tensor  # (B, hc, wc, 3) K^-1 [u, v, 1] of the cells
    map_from_camera: Tensor  # (B, 4, 4)
    seen: Tensor  # (B, N) bool, cells that the photograph shows
    still: Tensor  # (B, N) bool, of those the ones that show what stays in its place: no sky
    rotation_known: Tensor  # (B,) bool
    depth: Tensor | None  # (B, N) metres along z, 0 = unknown


class GeometryData:
    """Posed photographs of one scene, drawn as batches of one size.

    focal, longest_side: pixels, of the pictures that the network sees.
    """

    def __init__(
        self, images: Sequence[PosedImage], longest_side: int, focal: float | None = None, *,
        augmentation: AugmentationConfig, with_depth: bool = False,
    ):
        if not images:
            raise DataError('no photographs are given to learn scene geometry from')
        for image in images:
            if image.map_from_camera is None:
                raise DataError(f'{image.name} has no pose; scene geometry is learned from posed '
                                'photographs')
        self.images, self.augmentation, self.with_depth = images, augmentation, with_depth
        self.focal = focal or working_focal([image.camera for image in images], longest_side)
        self.sources = [_Source(working_view(image.camera, min(_FINER * self.focal, max(
            image.camera.fx, self.focal)), int(2 * _FINER * longest_side), square=True))
            for image in images]
        self.pictures = PictureCache(images, self.sources)
        self._masks: dict[int, Tensor | None] = {}
        # As `SceneGeometry.working_view` shows them.
        self.cameras = [working_view(
            image.camera, self.focal, 2 * longest_side, square=True).camera for image in images]
        # One size for all: that of the camera that took most of them.
        self.camera = max(dict.fromkeys(self.cameras), key=self.cameras.count)

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, batch: int, seed: Sequence[int]) -> GeometryBatch:
        """Draw `batch` photographs, each seen differently; the same for the same seed."""
        random = np.random.default_rng(seed)
        chosen = random.choice(len(self), batch, replace=len(self) < batch)
        return stacked([self.seen_differently(k, random) for k in chosen])

    def plain(self, chosen: Sequence[int]) -> GeometryBatch:
        """Give photographs by number as they are."""
        return stacked([self._seen(k, np.eye(3), 1.0, None) for k in chosen])

    def seen_differently(self, k: int, random: np.random.Generator) -> GeometryBatch:
        """Show photograph k as a turned and zoomed camera in another light would see it."""
        turn = Rotation.from_rotvec(random.normal(size=3) * self.augmentation.rotation).as_matrix()
        return self._seen(k, turn, float(np.exp(random.uniform(*self.augmentation.zoom))), random)

    def _seen(
        self, k: int, old_from_new: np.ndarray, zoom: float, random: np.random.Generator | None,
    ) -> GeometryBatch:
        """Give a batch of one: photograph k, turned, zoomed, in another light if random is."""
        source = self.sources[k].view.camera
        own = self.cameras[k]
        camera = replace(
            own, width=self.camera.width, height=self.camera.height,
            fx=own.fx * zoom, fy=own.fy * zoom,
            cx=own.cx + (self.camera.width - own.width) / 2,
            cy=own.cy + (self.camera.height - own.height) / 2)
        old_from_new_pixels = source.matrix() @ old_from_new @ np.linalg.inv(camera.matrix())
        picture = cv2.warpPerspective(
            self.pictures[k], old_from_new_pixels, (camera.width, camera.height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_CONSTANT,
            borderValue=(110, 110, 110))
        lit = picture.astype(np.float32) / 255 if random is None \
            else change_light(picture, self.augmentation, random)
        pose = self.images[k].map_from_camera.copy()
        pose[:3, :3] = pose[:3, :3] @ old_from_new
        rays = cell_rays(camera)
        turned = rays.double().reshape(-1, 3) @ torch.from_numpy(old_from_new).T
        seen, depth = source.sees(turned), None
        if self.with_depth:
            depth = self._depth(k, turned)[None]
        return GeometryBatch(
            torch.from_numpy(lit).permute(2, 0, 1)[None], rays[None],
            torch.from_numpy(pose).float()[None], seen[None], self._still(k, turned, seen)[None],
            torch.ones(1, dtype=torch.bool), depth)

    def _still(self, k: int, turned: Tensor, seen: Tensor) -> Tensor:
        """Tell which cells (N,) that are seen show neither sky nor what is masked."""
        if k not in self._masks:
            image = self.images[k]
            valid, sky = image.valid_mask(), image.sky_mask()
            still = valid if sky is None else ~sky if valid is None else valid & ~sky
            # Cells are coarse, and there may be many photographs.
            self._masks[k] = None if still is None else torch.from_numpy(
                still[::_COARSER, ::_COARSER].copy())
        mask, camera = self._masks[k], self.images[k].camera
        if mask is None:
            return seen
        column, row = (camera.project(turned) / _COARSER).round().long().unbind(-1)
        return seen & mask[row.clamp(0, mask.shape[0] - 1), column.clamp(0, mask.shape[1] - 1)]

    def _depth(self, k: int, turned: Tensor) -> Tensor:
        """Look up the depths (N,) of photograph k in directions (N, 3) of its own camera.

        Along the turned camera's axis; 0 where nothing is known.
        """
        known = self.images[k].depth_map()
        if known is None:
            return torch.zeros(len(turned))
        camera: Camera = self.images[k].camera
        column, row = camera.project(turned).round().long().unbind(-1)
        inside = camera.sees(turned)
        values = torch.from_numpy(known)[row.clamp(0, camera.height - 1),
                                         column.clamp(0, camera.width - 1)]
        # The point is depth / z times the direction, whose depth in the turned camera is 1.
        return torch.where(inside, values / turned[:, 2].clamp(min=1e-3), 0).float()


def stacked(parts: Sequence[GeometryBatch]) -> GeometryBatch:
    """Join batches of one size."""
    depth = None if parts[0].depth is None else torch.cat([part.depth for part in parts])
    return GeometryBatch(*(torch.cat([getattr(part, name) for part in parts]) for name in (
        'pictures', 'rays', 'map_from_camera', 'seen', 'still', 'rotation_known')), depth)
