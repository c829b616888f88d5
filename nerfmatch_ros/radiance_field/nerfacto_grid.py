"""The hash grids of nerfacto: the layouts that nerfstudio's torch code and tiny-cuda-nn write.

Both interpolate tables of features at points of the unit cube (Mueller et al., Instant-NGP,
SIGGRAPH 2022) and differ in where a level's entries lie: the torch code hashes every level, while
tiny-cuda-nn stores coarse levels densely and shifts each level by half a cell. Our own
`hash_grid.HashGrid` is a third layout. On the CPU compiled loops are used, elsewhere plain torch.
Letters: N points, L levels, E entries of all levels, F features an entry.
"""

from dataclasses import dataclass

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.radiance_field.hash_grid import as_many_threads_as_torch
from nerfmatch_ros.work_note import note_work
import numba
import numpy as np
import torch
from torch import nn, Tensor

LAYOUTS = ('torch', 'tcnn')
_PRIME_Y = 2654435761
_PRIME_Z = 805459861
_LARGEST_DENSE = 0x659  # vertices per side; tiny-cuda-nn hashes finer levels whatever their size


@dataclass(frozen=True)
class NerfactoGridConfig:
    """Size of a hash grid, in nerfstudio's terms."""

    levels: int = 16  # num_levels
    coarsest: int = 16  # base_res, cells or vertices per side of the coarsest level
    finest: int = 2048  # max_res, of the finest level
    log2_entries: int = 19  # log2_hashmap_size
    features: int = 2  # features_per_level
    layout: str = 'torch'  # who trained it: nerfstudio's 'torch' code or 'tcnn', tiny-cuda-nn

    def __post_init__(self):
        """Refuse what is no grid."""
        for name in ('levels', 'coarsest', 'finest', 'log2_entries', 'features'):
            if getattr(self, name) < 1:
                raise ConfigError(f'{name} of a hash grid is {getattr(self, name)}; '
                                  'it must be at least 1')
        if self.layout not in LAYOUTS:
            raise ConfigError(f"layout of a hash grid is '{self.layout}'; use torch or tcnn")


@dataclass(frozen=True)
class GridLevels:
    """Where the levels of a grid lie, in space and in the table."""

    scale: np.ndarray  # (L,) float32, cells per side of the unit cube
    side: np.ndarray  # (L,) int64, vertices per side of a dense level; 0: hashed
    start: np.ndarray  # (L + 1,) int64, first entry of each level in the table
    shift: float  # cells, added to every coordinate


def grid_levels(config: NerfactoGridConfig) -> GridLevels:
    """Lay out the levels as the program that trained them does, in its own precision."""
    growth = 1.0
    if config.levels > 1:
        growth = float(np.exp((np.log(config.finest) - np.log(config.coarsest))
                              / (config.levels - 1)))
    entries = 2 ** config.log2_entries
    if config.layout == 'torch':
        scale = torch.floor(config.coarsest * growth ** torch.arange(config.levels))
        return GridLevels(scale.numpy().astype(np.float32), np.zeros(config.levels, np.int64),
                          np.arange(config.levels + 1) * entries, 0.0)
    octaves = np.log2(np.float32(growth)) * np.arange(config.levels, dtype=np.float32)
    scale = np.exp2(octaves.astype(np.float32)) * np.float32(config.coarsest) - np.float32(1)
    vertices = np.ceil(scale).astype(np.int64) + 1
    sizes = np.minimum(-(-vertices ** 3 // 8) * 8, entries)
    dense = (vertices <= _LARGEST_DENSE) & (vertices ** 3 <= sizes)
    return GridLevels(scale, np.where(dense, vertices, 0),
                      np.concatenate([[0], np.cumsum(sizes)]), 0.5)


@numba.njit(inline='always')
def _entry(ix, iy, iz, side, size):
    if side > 0:
        # Past the last vertex of a row lies the first of the next one, as in tiny-cuda-nn.
        index = (iz * side + iy) * side + ix
        return index % size if index >= size or index < 0 else index
    return (ix ^ (iy * _PRIME_Y) ^ (iz * _PRIME_Z)) & (size - 1)


@numba.njit(parallel=True, fastmath=True, cache=True)
def _forward(points, table, scale, side, start, shift, out):
    chunk = 1024
    features = table.shape[1]
    for block in numba.prange((points.shape[0] + chunk - 1) // chunk):
        for level in range(scale.shape[0]):
            cells = scale[level]
            first = start[level]
            size = start[level + 1] - first
            column = level * features
            for i in range(block * chunk, min(points.shape[0], (block + 1) * chunk)):
                px = points[i, 0] * cells + shift
                py = points[i, 1] * cells + shift
                pz = points[i, 2] * cells + shift
                ix = np.int64(np.floor(px))
                iy = np.int64(np.floor(py))
                iz = np.int64(np.floor(pz))
                fx = px - np.float32(ix)
                fy = py - np.float32(iy)
                fz = pz - np.float32(iz)
                for feature in range(features):
                    out[i, column + feature] = 0
                for corner in range(8):
                    bx = corner & 1
                    by = (corner >> 1) & 1
                    bz = corner >> 2
                    w = ((fx if bx else 1 - fx) * (fy if by else 1 - fy)
                         * (fz if bz else 1 - fz))
                    k = first + _entry(ix + bx, iy + by, iz + bz, side[level], size)
                    for feature in range(features):
                        out[i, column + feature] += w * table[k, feature]


@numba.njit(parallel=True, fastmath=True, cache=True)
def _backward_points(points, table, gradient, scale, side, start, shift, point_gradient):
    features = table.shape[1]
    for i in numba.prange(points.shape[0]):
        gx = np.float32(0)
        gy = np.float32(0)
        gz = np.float32(0)
        for level in range(scale.shape[0]):
            cells = scale[level]
            first = start[level]
            size = start[level + 1] - first
            column = level * features
            px = points[i, 0] * cells + shift
            py = points[i, 1] * cells + shift
            pz = points[i, 2] * cells + shift
            ix = np.int64(np.floor(px))
            iy = np.int64(np.floor(py))
            iz = np.int64(np.floor(pz))
            fx = px - np.float32(ix)
            fy = py - np.float32(iy)
            fz = pz - np.float32(iz)
            for corner in range(8):
                bx = corner & 1
                by = (corner >> 1) & 1
                bz = corner >> 2
                wx = fx if bx else 1 - fx
                wy = fy if by else 1 - fy
                wz = fz if bz else 1 - fz
                k = first + _entry(ix + bx, iy + by, iz + bz, side[level], size)
                dot = np.float32(0)
                for feature in range(features):
                    dot += table[k, feature] * gradient[i, column + feature]
                dot *= cells
                gx += dot * wy * wz * (1 if bx else -1)
                gy += dot * wx * wz * (1 if by else -1)
                gz += dot * wx * wy * (1 if bz else -1)
        point_gradient[i, 0] = gx
        point_gradient[i, 1] = gy
        point_gradient[i, 2] = gz


class _CompiledEncoding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, points, table, levels):
        as_many_threads_as_torch()
        points = points.contiguous()
        features = table.shape[1]
        out = points.new_empty(len(points), len(levels.scale) * features)
        corners = 8 * len(points) * len(levels.scale)
        # Of each corner: its weight, the weighted sum of the features, a share of the cell.
        note_work('hash grid', (2 + 2 * features + 1) * corners,
                  [(table, corners * features * table.element_size())])
        _forward(points.detach().numpy(), table.detach().numpy(), levels.scale, levels.side,
                 levels.start, np.float32(levels.shift), out.numpy())
        ctx.save_for_backward(points, table)
        ctx.levels = levels
        return out

    @staticmethod
    def backward(ctx, gradient):
        as_many_threads_as_torch()
        points, table = ctx.saved_tensors
        levels = ctx.levels
        point_gradient = torch.empty_like(points)
        _backward_points(
            points.detach().numpy(), table.detach().numpy(), gradient.float().contiguous().numpy(),
            levels.scale, levels.side, levels.start, np.float32(levels.shift),
            point_gradient.numpy())
        return point_gradient, None, None


def encode_in_torch(points: Tensor, table: Tensor, levels: GridLevels) -> Tensor:
    """Encode as `NerfactoGrid` does, on any device: (N, 3), (E, F) -> (N, L F)."""
    corners = torch.tensor([[k & 1, (k >> 1) & 1, k >> 2] for k in range(8)],
                           device=points.device)
    found = []
    for scale, side, start, end in zip(
            levels.scale.tolist(), levels.side.tolist(), levels.start[:-1].tolist(),
            levels.start[1:].tolist()):
        scaled = points * scale + levels.shift
        base = scaled.detach().nan_to_num(0).floor().long()
        fraction = (scaled - base)[:, None]
        weight = torch.where(corners[None] == 1, fraction, 1 - fraction).prod(-1)
        x, y, z = (base[:, None] + corners).unbind(-1)
        index = (z * side + y) * side + x if side else x ^ (y * _PRIME_Y) ^ (z * _PRIME_Z)
        found.append((weight[..., None] * table[start + index % (end - start)]).sum(1))
    return torch.cat(found, dim=-1)


class NerfactoGrid(nn.Module):
    """Tables of features of all levels; `forward` interpolates them at points of the unit cube."""

    def __init__(self, config: NerfactoGridConfig):
        super().__init__()
        self.levels = grid_levels(config)
        self.table = nn.Parameter(torch.zeros(int(self.levels.start[-1]), config.features))
        nn.init.uniform_(self.table, -1e-3, 1e-3)
        self.channels = config.levels * config.features

    def forward(self, points: Tensor) -> Tensor:
        """Encode points (N, 3) in [0, 1] -> (N, L F); differentiable in the points and table."""
        trained = self.table.requires_grad and torch.is_grad_enabled()
        if points.device.type == 'cpu' and points.dtype == torch.float32 and not trained:
            return _CompiledEncoding.apply(points, self.table, self.levels)
        return encode_in_torch(points, self.table, self.levels)
