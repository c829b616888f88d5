"""Multi-resolution hash encoding of 3D points (Mueller et al., Instant-NGP, SIGGRAPH 2022).

Letters: N points, L levels, T table entries a level, F = 4 features an entry. A level whose
(resolution + 1)^3 corners fit into T is stored densely, the others through a spatial hash.
On the CPU compiled loops are used, elsewhere plain torch; both give the same numbers.
"""

from nerfmatch_ros.work_note import note_work
import numba
import numpy as np
import torch
from torch import nn, Tensor
import torch.nn.functional as F

FEATURES = 4
_PRIME_Y = 2654435761
_PRIME_Z = 805459861
# Of each of the 8 corners of a cell: its weight, the weighted sum of FEATURES, a share of the cell
_CORNER_FLOPS = 2 + 2 * FEATURES + 1


def level_resolutions(levels: int, coarsest: int, finest: int) -> np.ndarray:
    """Grow the cells per side geometrically from `coarsest` to `finest`: (L,) int64."""
    return np.round(np.geomspace(coarsest, finest, levels)).astype(np.int64)


@numba.njit(inline='always')
def _cell(position, cells):
    # Clamped as a whole number: so nothing outside of the table is read, not even for NaN.
    return min(max(np.int64(position), 0), cells - 1)


@numba.njit(inline='always')
def _entry(ix, iy, iz, side, dense, mask):
    if dense:
        return (iz * side + iy) * side + ix
    return (ix ^ (iy * _PRIME_Y) ^ (iz * _PRIME_Z)) & mask


@numba.njit(parallel=True, fastmath=True, cache=True)
def _forward(points, table, resolutions, dense, out):
    chunk = 1024
    for block in numba.prange((points.shape[0] + chunk - 1) // chunk):
        for level in range(out.shape[1] // 4):
            cells = resolutions[level]
            entries = table[level]
            mask = table.shape[1] - 1
            column = level * 4
            for i in range(block * chunk, min(points.shape[0], (block + 1) * chunk)):
                px = points[i, 0] * cells
                py = points[i, 1] * cells
                pz = points[i, 2] * cells
                ix = _cell(px, cells)
                iy = _cell(py, cells)
                iz = _cell(pz, cells)
                fx = np.float32(px - ix)
                fy = np.float32(py - iy)
                fz = np.float32(pz - iz)
                a = np.float32(0)
                b = np.float32(0)
                c = np.float32(0)
                d = np.float32(0)
                for corner in range(8):
                    bx = corner & 1
                    by = (corner >> 1) & 1
                    bz = corner >> 2
                    w = ((fx if bx else 1 - fx) * (fy if by else 1 - fy)
                         * (fz if bz else 1 - fz))
                    k = _entry(ix + bx, iy + by, iz + bz, cells + 1, dense[level], mask)
                    a += w * entries[k, 0]
                    b += w * entries[k, 1]
                    c += w * entries[k, 2]
                    d += w * entries[k, 3]
                out[i, column] = a
                out[i, column + 1] = b
                out[i, column + 2] = c
                out[i, column + 3] = d


@numba.njit(parallel=True, fastmath=True, cache=True)
def _backward_table(points, gradient, resolutions, dense, table_gradient):
    # Parallel over levels: no two threads write to the same entry.
    for level in numba.prange(gradient.shape[1] // 4):
        cells = resolutions[level]
        entries = table_gradient[level]
        mask = table_gradient.shape[1] - 1
        column = level * 4
        for i in range(points.shape[0]):
            ga = gradient[i, column]
            gb = gradient[i, column + 1]
            gc = gradient[i, column + 2]
            gd = gradient[i, column + 3]
            if ga == 0 and gb == 0 and gc == 0 and gd == 0:
                continue
            px = points[i, 0] * cells
            py = points[i, 1] * cells
            pz = points[i, 2] * cells
            ix = _cell(px, cells)
            iy = _cell(py, cells)
            iz = _cell(pz, cells)
            fx = np.float32(px - ix)
            fy = np.float32(py - iy)
            fz = np.float32(pz - iz)
            for corner in range(8):
                bx = corner & 1
                by = (corner >> 1) & 1
                bz = corner >> 2
                w = (fx if bx else 1 - fx) * (fy if by else 1 - fy) * (fz if bz else 1 - fz)
                k = _entry(ix + bx, iy + by, iz + bz, cells + 1, dense[level], mask)
                entries[k, 0] += w * ga
                entries[k, 1] += w * gb
                entries[k, 2] += w * gc
                entries[k, 3] += w * gd


@numba.njit(parallel=True, fastmath=True, cache=True)
def _backward_points(points, table, gradient, resolutions, dense, point_gradient):
    for i in numba.prange(points.shape[0]):
        x = np.float32(0)
        y = np.float32(0)
        z = np.float32(0)
        for level in range(gradient.shape[1] // 4):
            ga = gradient[i, level * 4]
            gb = gradient[i, level * 4 + 1]
            gc = gradient[i, level * 4 + 2]
            gd = gradient[i, level * 4 + 3]
            if ga == 0 and gb == 0 and gc == 0 and gd == 0:
                continue
            cells = resolutions[level]
            entries = table[level]
            mask = table.shape[1] - 1
            px = points[i, 0] * cells
            py = points[i, 1] * cells
            pz = points[i, 2] * cells
            ix = _cell(px, cells)
            iy = _cell(py, cells)
            iz = _cell(pz, cells)
            fx = np.float32(px - ix)
            fy = np.float32(py - iy)
            fz = np.float32(pz - iz)
            for corner in range(8):
                bx = corner & 1
                by = (corner >> 1) & 1
                bz = corner >> 2
                wx = fx if bx else 1 - fx
                wy = fy if by else 1 - fy
                wz = fz if bz else 1 - fz
                k = _entry(ix + bx, iy + by, iz + bz, cells + 1, dense[level], mask)
                dot = (entries[k, 0] * ga + entries[k, 1] * gb
                       + entries[k, 2] * gc + entries[k, 3] * gd) * np.float32(cells)
                x += dot * wy * wz * (1 if bx else -1)
                y += dot * wx * wz * (1 if by else -1)
                z += dot * wx * wy * (1 if bz else -1)
        point_gradient[i, 0] = x
        point_gradient[i, 1] = y
        point_gradient[i, 2] = z


def as_many_threads_as_torch():
    """Hold numba to the number of threads that torch was told; numba's own goes by the caller."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    # Both may share one OpenMP, and starting its pool for numba changes what torch was told.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


class _CompiledEncoding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, points, table, resolutions, dense, levels):
        as_many_threads_as_torch()
        points = points.contiguous()
        out = points.new_empty(len(points), levels * FEATURES)
        corners = 8 * len(points) * levels
        note_work('hash grid', _CORNER_FLOPS * corners,
                  [(table, corners * FEATURES * table.element_size())])
        _forward(points.detach().numpy(), table.detach().numpy(), resolutions, dense, out.numpy())
        ctx.save_for_backward(points, table)
        ctx.layout = (resolutions, dense)
        return out

    @staticmethod
    def backward(ctx, gradient):
        as_many_threads_as_torch()
        points, table = ctx.saved_tensors
        gradient = gradient.float().contiguous()
        point_gradient = table_gradient = None
        if ctx.needs_input_grad[0]:
            point_gradient = torch.empty_like(points)
            _backward_points(points.detach().numpy(), table.detach().numpy(), gradient.numpy(),
                             *ctx.layout, point_gradient.numpy())
        if ctx.needs_input_grad[1]:
            table_gradient = torch.zeros_like(table)
            _backward_table(points.detach().numpy(), gradient.numpy(), *ctx.layout,
                            table_gradient.numpy())
        return point_gradient, table_gradient, None, None, None


def encode_in_torch(points: Tensor, table: Tensor, resolutions, dense) -> Tensor:
    """Encode as `HashGrid` does, on any device: (N, 3), (L, T, F) -> (N, L F)."""
    corners = torch.tensor([[k & 1, (k >> 1) & 1, k >> 2] for k in range(8)],
                           device=points.device)
    levels = []
    for level, (cells, is_dense) in enumerate(zip(resolutions.tolist(), dense.tolist())):
        scaled = points * cells
        base = scaled.detach().nan_to_num(0).long().clamp(0, cells - 1)
        fraction = (scaled - base)[:, None]
        weight = torch.where(corners[None] == 1, fraction, 1 - fraction).prod(-1)
        x, y, z = (base[:, None] + corners).unbind(-1)
        index = _entry.py_func(x, y, z, cells + 1, is_dense, table.shape[1] - 1)
        levels.append((weight[..., None] * table[level][index]).sum(1))
    return torch.cat(levels, dim=-1)


class HashGrid(nn.Module):
    """Learned table of features; `forward` interpolates it at points of the unit cube."""

    def __init__(self, levels: int, coarsest: int, finest: int, log2_entries: int):
        super().__init__()
        self.resolutions = level_resolutions(levels, coarsest, finest)
        self.dense = (self.resolutions + 1) ** 3 <= 2 ** log2_entries
        self.table = nn.Parameter(torch.zeros(levels, 2 ** log2_entries, FEATURES))
        nn.init.uniform_(self.table, -1e-4, 1e-4)
        self.channels = levels * FEATURES

    def forward(self, points: Tensor, levels: int | None = None) -> Tensor:
        """Encode points (N, 3) in [0, 1] -> (N, L F); differentiable in the points and table.

        levels: that are looked up, coarse ones first; the features of the others are 0.
        """
        levels = len(self.resolutions) if levels is None else levels
        if points.device.type == 'cpu' and points.dtype == torch.float32:
            features = _CompiledEncoding.apply(
                points, self.table, self.resolutions, self.dense, levels)
        else:
            features = encode_in_torch(
                points, self.table, self.resolutions[:levels], self.dense[:levels])
        missing = self.channels - features.shape[1]
        return F.pad(features, (0, missing)) if missing else features
