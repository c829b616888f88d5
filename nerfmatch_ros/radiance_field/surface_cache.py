"""Points on the surfaces of a whole map, so that what any camera sees is looked up, not rendered.

Colour, inner features and the matcher's tokens of a surface point depend on the point alone. The
points are kept sorted by tile, cubes of `TILE` voxels, so that those beyond a camera's frustum
cost nothing; `splatting` shows them to a camera. Letters: G points, T tiles, F channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
import math

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import torch
from torch import Tensor

TILE = 16  # voxels along the side of a tile; on a plane 256 points
NORMAL_SCALE = 127  # of a unit normal


@dataclass(frozen=True)
class SurfaceCache:
    """Points of surfaces, about one in each voxel, sorted by tile; `sorted_cache` makes one."""

    points: Tensor  # (G, 3) float32, map frame, metres
    normals: Tensor  # (G, 3) int8, x 127, map frame, towards the cameras that saw it; 0: unknown
    colour: Tensor  # (G, 3) uint8
    features: Tensor | None  # (G, F) float16; None: the field knows them, or nobody needs them
    tile_starts: Tensor  # (T + 1,) int64, first point of each tile
    voxel: float  # metres, at least about the distance of neighbouring points

    def __post_init__(self):
        """Refuse tensors that do not fit to one another."""
        count = len(self.points)
        expected = {'points': (torch.float32, (count, 3)), 'normals': (torch.int8, (count, 3)),
                    'colour': (torch.uint8, (count, 3))}
        if self.features is not None:
            expected['features'] = (torch.float16, (count, self.features.shape[-1]))
        for name, (kind, shape) in expected.items():
            value = getattr(self, name)
            if value.dtype != kind or tuple(value.shape) != shape:
                raise DataError(f'{name} of a surface cache are {value.dtype} '
                                f'{tuple(value.shape)}, not {kind} {shape}; make the cache again')
        if not (math.isfinite(self.voxel) and self.voxel > 0):
            raise DataError(f'the voxel of a surface cache is {self.voxel} m; '
                            'give a positive number')

    def __len__(self) -> int:
        return len(self.points)

    @cached_property
    def tile_boxes(self) -> Tensor:
        """Lowest and highest corners (T, 2, 3) of what each tile holds, on the CPU, metres."""
        points, starts = self.points.cpu().numpy(), self.tile_starts.cpu().numpy()
        if len(starts) < 2:
            return torch.zeros(0, 2, 3)
        return torch.from_numpy(np.stack([
            np.minimum.reduceat(points, starts[:-1]), np.maximum.reduceat(points, starts[:-1])],
            axis=1))

    def to(self, device: torch.device | str) -> 'SurfaceCache':
        """Move the tensors to a device."""
        features = None if self.features is None else self.features.to(device)
        return SurfaceCache(self.points.to(device), self.normals.to(device),
                            self.colour.to(device), features, self.tile_starts.to(device),
                            self.voxel)

    def to_tensors(self) -> dict[str, Tensor]:
        """Give what a file keeps of it."""
        tensors = {'points': self.points, 'normals': self.normals, 'colour': self.colour,
                   'features': self.features, 'tile_starts': self.tile_starts,
                   'voxel': torch.tensor([self.voxel], dtype=torch.float64)}
        return {name: value for name, value in tensors.items() if value is not None}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> 'SurfaceCache':
        """Make a cache of what `to_tensors` gave; DataError for what cannot be one."""
        needed = {'points', 'normals', 'colour', 'tile_starts', 'voxel'}
        if missing := needed - set(tensors):
            raise DataError(f'the surface cache lacks {sorted(missing)}')
        starts, voxel = tensors['tile_starts'], tensors['voxel']
        ends = (0, len(tensors['points']))
        if starts.dtype != torch.int64 or starts.dim() != 1 or not len(starts) \
                or (starts[0].item(), starts[-1].item()) != ends or (starts.diff() <= 0).any():
            raise DataError('tile_starts of the surface cache do not number its '
                            f'{ends[1]} points')
        for name in ('points', 'features'):
            if name in tensors and not tensors[name].isfinite().all():
                raise DataError(f'{name} of the surface cache hold NaN or infinity')
        if voxel.shape != (1,):
            raise DataError(f'voxel of the surface cache has shape {tuple(voxel.shape)}, not (1,)')
        return SurfaceCache(tensors['points'], tensors['normals'], tensors['colour'],
                            tensors.get('features'), starts, voxel.item())


def sorted_cache(
    points: Tensor, voxel: float, *, normals: Tensor | None = None, colour: Tensor | None = None,
    features: Tensor | None = None,
) -> SurfaceCache:
    """Make a cache of points (G, 3), map frame, metres, about one in each cube of side `voxel`.

    normals: (G, 3) unit, map frame, 0 where unknown; colour: (G, 3) in [0, 1]; None: zeros.
    features: (G, F) or None.
    """
    zeros = torch.zeros(len(points), 3)
    points = points.float()
    tile = torch.floor(points.double() / (TILE * voxel)).long()
    order = torch.from_numpy(np.lexsort(tile.T.numpy()))  # stable: points keep their order
    tile = tile[order]
    first = torch.ones(len(points), dtype=torch.bool)
    first[1:] = (tile[1:] != tile[:-1]).any(dim=1)
    starts = torch.cat((first.nonzero()[:, 0], torch.tensor([len(points)])))
    normals = ((zeros if normals is None else normals) * NORMAL_SCALE).round().to(torch.int8)
    colour = ((zeros if colour is None else colour) * 255).round().to(torch.uint8)
    return SurfaceCache(
        points[order].contiguous(), normals[order].contiguous(), colour[order].contiguous(),
        None if features is None else features[order].half().contiguous(), starts, float(voxel))


def cached_points(
    cache: SurfaceCache, index: Tensor | Sequence[int], field: RadianceField, frame: SceneFrame,
    feature_layer: int | None,
) -> tuple[Tensor, Tensor | None]:
    """Give the chosen points (m, 3), map frame, metres, and their features f^j (m, F) or None.

    Features that the cache does not hold are asked from the field, which is on its device.
    """
    points = cache.points[index]
    if feature_layer is None:
        return points, None
    if cache.features is not None:
        return points, cache.features[index]
    return points, field.point_features(frame.to_scene(points), feature_layer)
