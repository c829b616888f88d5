"""Depth maps of photographs, and the distance they give along any ray of their cameras."""

from dataclasses import dataclass
from pathlib import Path

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import torch
from torch import Tensor

CONTINUOUS = 0.03  # largest relative step between neighbouring pixels of one surface


@dataclass(frozen=True, eq=False)
class DepthMap:
    """What is known of the depth of one photograph."""

    depth: np.ndarray  # (H, W) float32 along z of `camera`, metres; 0 where unknown
    camera: Camera  # PINHOLE, in the place and with the axes of the photograph's camera

    def __post_init__(self):
        """Refuse a camera of another size or with a lens."""
        if self.camera.model != 'PINHOLE':
            raise DataError(f'the camera of a depth map is {self.camera.model}; give a PINHOLE')
        if self.depth.shape != (self.camera.height, self.camera.width):
            raise DataError(f'a depth map of shape {self.depth.shape} has a camera of '
                            f'{self.camera.width} x {self.camera.height} pixels; give its own')


class DepthTable:
    """Depth maps of K photographs as flat tensors, to be looked up along rays."""

    def __init__(self, maps: list[DepthMap | None], device: torch.device | str = 'cpu'):
        """Photographs without a map are None: nothing is known along their rays."""
        sizes = [0 if m is None else m.depth.size for m in maps]
        self._starts = torch.tensor(np.cumsum([0, *sizes])[:-1], device=device)
        self._cameras = torch.tensor(
            [(0, 0, 1, 1, 0, 0) if m is None else (
                m.camera.width, m.camera.height, m.camera.fx, m.camera.fy, m.camera.cx,
                m.camera.cy) for m in maps], device=device, dtype=torch.float32).reshape(-1, 6)
        # One more pixel, unknown, takes what would fall outside.
        self._depth = torch.from_numpy(np.concatenate(
            [m.depth.ravel() for m in maps if m is not None] + [np.zeros(1, np.float32)]
        ).astype(np.float32)).to(device)

    def distances(self, image_index: Tensor, directions: Tensor) -> Tensor:
        """Give the distance (R,) along rays to what the maps show, metres; 0 where unknown.

        image_index: (R,) int64, position in the list of maps; directions: (R, 3) unit, camera
        frame. Between four pixels of one surface 1 / depth is interpolated, which is exact on a
        plane; elsewhere, at edges and beside unknown pixels, the nearest pixel counts.
        """
        width, height, fx, fy, cx, cy = self._cameras[image_index].unbind(-1)
        ahead = directions[:, 2].clamp(min=1e-6)
        u = fx * directions[:, 0] / ahead + cx
        v = fy * directions[:, 1] / ahead + cy
        inside = ((directions[:, 2] > 1e-6) & (u > -0.5) & (u < width - 0.5)
                  & (v > -0.5) & (v < height - 0.5))
        start = self._starts[image_index]

        def at(column: Tensor, row: Tensor) -> Tensor:
            column = torch.minimum(column, width - 1).clamp(min=0).long()
            row = torch.minimum(row, height - 1).clamp(min=0).long()
            flat = start + row * width.long() + column
            return self._depth[torch.where(inside, flat, len(self._depth) - 1)]

        left, top = u.floor(), v.floor()
        corners = torch.stack((at(left, top), at(left + 1, top),
                               at(left, top + 1), at(left + 1, top + 1)))
        nearest = at((u + 0.5).floor(), (v + 0.5).floor())
        smallest = corners.amin(0)
        smooth = (smallest > 0) & (corners.amax(0) < smallest * (1 + CONTINUOUS))
        p, q = u - left, v - top
        weight = torch.stack(((1 - p) * (1 - q), p * (1 - q), (1 - p) * q, p * q))
        between = 1 / (weight / torch.where(smooth, corners, 1)).sum(0)
        return torch.where(inside, torch.where(smooth, between, nearest) / ahead, 0)


def known_share(maps: list[DepthMap | None]) -> float:
    """Give the mean share of pixels whose depth is known; 0 without maps."""
    shares = [float((m.depth > 0).mean()) for m in maps if m is not None]
    return float(np.mean(shares)) if shares else 0.0


def save_depth_maps(path: Path, maps: list[DepthMap | None]) -> None:
    """Write depth maps, None included, to an .npz file."""
    np.savez(path, count=len(maps), **{
        f'{name}_{k}': value for k, m in enumerate(maps) if m is not None
        for name, value in (('depth', m.depth), ('intrinsics', np.array(
            [m.camera.fx, m.camera.fy, m.camera.cx, m.camera.cy])))})


def load_depth_maps(path: Path) -> list[DepthMap | None]:
    """Read what `save_depth_maps` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        maps: list[DepthMap | None] = [None] * int(stored['count'])
        for k in range(len(maps)):
            if f'depth_{k}' in stored:
                depth, intrinsics = stored[f'depth_{k}'], stored[f'intrinsics_{k}'].tolist()
                height, width = depth.shape
                maps[k] = DepthMap(depth, Camera('PINHOLE', width, height, *intrinsics))
    return maps
