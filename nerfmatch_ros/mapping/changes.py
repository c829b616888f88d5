"""Where a place is no longer as its map shows it: space that new photographs contradict.

A photograph is compared with what the field shows from there. A pixel that differs says that
something between the camera and the old surface, that included, is not as it was. Space that
several photographs look into and nearly all of them see differ is contradicted, as in space
carving (Kutulakos and Seitz, IJCV 2000) with differences for silhouettes: there is something new,
or something old is gone or looks different. Space before a surface whose depth was measured in the
photographs is empty now, and was.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import inverse, transform_points
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
from scipy import ndimage
import torch
from torch import Tensor

FEWEST_AROUND = 6  # of a cell and its 26 neighbours, that must be contradicted; 9 in a flat sheet


@dataclass(frozen=True)
class ChangeConfig:
    """When a photograph and the field differ, and when that counts."""

    photographs: int = 60  # compared, at most, evenly chosen
    stride: int = 2  # working pixels between the rays that are rendered
    window: int = 9  # rendered pixels, side of the window of the correlation; odd
    correlation: float = 0.3  # below, textures differ
    colour: float = 0.10  # of a channel in [0, 1]; above, colours differ
    cells: int = 96  # along each side of the field's box
    seen: int = 2  # photographs that must look into a cell
    share: float = 0.7  # of them that must see a difference
    reach: float = 0.04  # of the depth, before and behind a surface that still is the surface

    def __post_init__(self):
        """Refuse values that nothing can be compared with."""
        for name in ('photographs', 'stride', 'cells', 'seen'):
            if getattr(self, name) < 1:
                raise ConfigError(f'changes.{name} is {getattr(self, name)}; give 1 or more')
        if self.window < 3 or self.window % 2 == 0:
            raise ConfigError(f'changes.window is {self.window}; give an odd number from 3 on')


@dataclass(frozen=True, eq=False)
class Look:
    """What one new photograph says of the map."""

    camera: Camera  # PINHOLE, of the grid of `differs`
    map_from_camera: np.ndarray  # (4, 4)
    differs: np.ndarray  # (H, W) bool
    depth: np.ndarray  # (H, W) metres along the optical axis, of the old surface; 0: none known
    measured: np.ndarray | None = None  # (H, W) metres, of the surface now; 0 where unknown


@dataclass(frozen=True, eq=False)
class Changes:
    """Contradicted cells of a grid over the field's box."""

    contradicted: np.ndarray  # (n, n, n) bool
    frame: SceneFrame
    half: float = 1.0  # scene units from the middle of the grid to its sides

    @property
    def share(self) -> float:
        """Share of the cells that are contradicted."""
        return float(self.contradicted.mean())

    def hold(self, points: Tensor) -> Tensor:
        """Tell which points (..., 3), map frame, metres, lie in contradicted cells: (...) bool."""
        n = len(self.contradicted)
        index = ((self.frame.to_scene(points) + self.half) * (n / (2 * self.half))).floor().long()
        inside = ((index >= 0) & (index < n)).all(-1)
        index = index.clamp(0, n - 1)
        flat = (index[..., 0] * n + index[..., 1]) * n + index[..., 2]
        return torch.from_numpy(self.contradicted.reshape(-1))[flat] & inside


def differing(
    photograph: np.ndarray, rendered: np.ndarray, config: ChangeConfig,
) -> np.ndarray:
    """Tell where two pictures (H, W, 3) float32 in [0, 1] of one view differ: (H, W) bool.

    The exposure between them is fitted, robustly. Textures are compared by their correlation in a
    window, where both or either has any; colours by their means over the window.
    """
    photograph, rendered = (cv2.GaussianBlur(picture, (0, 0), 1.0)
                            for picture in (photograph, rendered))
    rendered = _exposed(rendered, photograph)
    size = (config.window, config.window)

    def mean(picture: np.ndarray) -> np.ndarray:
        return cv2.blur(picture, size, borderType=cv2.BORDER_REFLECT)

    first, second = mean(photograph), mean(rendered)
    covariance = (mean(photograph * rendered) - first * second).sum(-1)
    variances = [(mean(picture ** 2) - middle ** 2).sum(-1).clip(0)
                 for picture, middle in ((photograph, first), (rendered, second))]
    floor = 3 * 0.02 ** 2  # of noise; a wall without texture correlates with nothing
    correlation = (covariance + floor) / (np.sqrt(
        (variances[0] + floor) * (variances[1] + floor)))
    return (correlation < config.correlation) | (
        np.abs(first - second).max(-1) > config.colour)


def _exposed(rendered: np.ndarray, photograph: np.ndarray) -> np.ndarray:
    """Fit gain and offset of each channel to the half of the pixels that agree best."""
    result = rendered.reshape(-1, 3).astype(np.float64)
    target = photograph.reshape(-1, 3).astype(np.float64)
    fitted = result.copy()
    kept = np.ones(len(result), bool)
    for _ in range(4):
        mean, other = result[kept].mean(0), target[kept].mean(0)
        spread = ((result[kept] - mean) ** 2).mean(0) + 1e-4
        gain = ((result[kept] - mean) * (target[kept] - other)).mean(0) + 1e-4
        fitted = (result - mean) * np.clip(gain / spread, 0.5, 2) + other
        error = np.abs(fitted - target).max(1)
        kept = error <= np.median(error)
    return fitted.reshape(rendered.shape).astype(np.float32)


def find_changes(looks: Sequence[Look], frame: SceneFrame, config: ChangeConfig) -> Changes:
    """Carve: cells that photographs look into and nearly all of them see differ.

    A photograph sees no difference in space that is empty before its own surface and the old one,
    and does not look behind its own. Where the old map knows no surface it says nothing.
    """
    n = config.cells
    middle = (torch.arange(n) + 0.5) * (2 / n) - 1
    cells = torch.stack(torch.meshgrid(middle, middle, middle, indexing='ij'), -1).view(-1, 3)
    points, side = frame.to_map(cells), 2 / n / frame.scene_from_map.scale
    seen = torch.zeros(len(points), dtype=torch.int16)
    differ = torch.zeros(len(points), dtype=torch.int16)
    for look in looks:
        height, width = look.differs.shape
        in_camera = transform_points(
            inverse(torch.from_numpy(look.map_from_camera).float()), points)
        z, pixels = in_camera[:, 2], look.camera.project(in_camera)
        ahead = z > 1e-3
        column = (pixels[:, 0] + 0.5).nan_to_num(-1).clamp(-1, width).long()
        row = (pixels[:, 1] + 0.5).nan_to_num(-1).clamp(-1, height).long()
        inside = ahead & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        flat = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1))
        depth = torch.from_numpy(look.depth.reshape(-1))[flat]
        near = (config.reach * depth).clamp(min=side)
        looked = inside & (depth > 0) & (z < depth + near)
        differs = torch.from_numpy(look.differs.reshape(-1))[flat]
        if look.measured is not None:
            now = torch.from_numpy(look.measured.reshape(-1))[flat]
            looked &= (now == 0) | (z < now + near)
            differs &= (now == 0) | (z > torch.minimum(now, depth) - near)
        seen += looked
        differ += looked & differs
    contradicted = (seen >= config.seen) & (differ >= config.seen) \
        & (differ.float() >= config.share * seen.float())
    grid = contradicted.view(n, n, n).numpy()
    # A few cells are noise, a sheet of them is a picture on a wall. What is left is one cell
    # larger than what was seen to differ.
    around = ndimage.convolve(grid.astype(np.int8), np.ones((3, 3, 3), np.int8), mode='constant')
    kept = grid & (around >= FEWEST_AROUND)
    return Changes(ndimage.binary_dilation(kept, np.ones((3, 3, 3))), frame)


def rays_through(
    changes: Changes, camera: Camera, map_from_camera: np.ndarray, depth: np.ndarray, *,
    stride: int = 2, samples: int = 96,
) -> np.ndarray:
    """Tell which pixels (H, W) of an old view look through or at what is contradicted: bool.

    depth: (H, W) metres along the optical axis, of the old surface; 0 where there is none, and
    such a pixel is followed to the end of the scene.
    """
    coarse = camera.scaled_to(camera.width // stride, camera.height // stride)
    rays = coarse.rays(coarse.pixel_grid().double()).float()
    ends = cv2.resize(depth.astype(np.float32), (coarse.width, coarse.height),
                      interpolation=cv2.INTER_NEAREST).reshape(-1)
    farthest = changes.frame.far / changes.frame.scene_from_map.scale
    ends = torch.from_numpy(np.where(ends > 0, ends, farthest)) / rays[:, 2]
    steps = torch.linspace(0, 1, samples)
    pose = torch.from_numpy(map_from_camera).float()
    turned = rays @ pose[:3, :3].T
    hit = torch.zeros(len(rays), dtype=torch.bool)
    for step in steps:  # to a little behind the surface, which is where its cells may lie
        hit |= changes.hold(pose[:3, 3] + (1.01 * step * ends)[:, None] * turned)
    mask = hit.view(coarse.height, coarse.width).numpy().astype(np.uint8)
    mask = cv2.dilate(mask, np.ones((3, 3), np.uint8))
    return cv2.resize(mask, (camera.width, camera.height),
                      interpolation=cv2.INTER_NEAREST).astype(bool)
