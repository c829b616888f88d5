"""Showing the points of a surface cache to a camera: z-buffer splatting onto its 1/8 grid.

    tiles in the frustum -> points in the picture, facing it -> nearest surface of each cell
    -> of its points the one nearest to the cell's centre -> no point that leaks through a surface

On the CPU compiled loops are used, elsewhere plain torch; both give the same points. Letters:
N cells, G points of the cache, m points in the picture.
"""

from dataclasses import dataclass
from functools import lru_cache
import math

from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.radiance_field import splat_loops
from nerfmatch_ros.radiance_field.surface_cache import NORMAL_SCALE, SurfaceCache
from nerfmatch_ros.work_note import note_work
import numpy as np
import torch
from torch import Tensor

FRONT = 1.03  # share of the nearest distance in a cell up to which points are of one surface ...
FRONT_VOXELS = 1.0  # ... and voxels further
FOOTPRINT = 1.0  # voxels, radius of the disc that a point stands for
AWAY = 0.1  # cosine between normal and ray beyond which a point faces away
LEAK = 0.9  # share of a point's distance; nearer neighbours all around hide it
_LEAST_DEPTH = 1e-3  # metres
_POINT_FLOPS = 32  # of a point looked at: moved, projected, its distance, which way it faces
_WIDE = math.tan(math.radians(80))  # lenses that see beyond this are not bounded by four planes


@dataclass(frozen=True)
class SplattedView:
    """What a camera sees of a surface cache: at most one point in each cell, N' of them."""

    index: Tensor  # (N',) int64 into the cache
    cell: Tensor  # (N',) int64, row-major, ascending
    depth: Tensor  # (N',) metres along the optical axis
    coverage: float  # share of the cells that have a point
    rows: int
    columns: int


@torch.no_grad()
def splat(
    cache: SurfaceCache, camera: Camera, map_from_camera: Tensor | np.ndarray, stride: int = 8,
) -> SplattedView:
    """Choose the points that a camera, of any lens, at a pose (4, 4) sees, one in each cell.

    The same call gives the same points. On a GPU this waits for it once, to learn how many there
    are; `splat_grid` never does.
    """
    rows, columns = camera.height // stride, camera.width // stride
    centre, turn = _pose(map_from_camera)
    if cache.points.is_cuda:
        chosen, _ = splat_grid(cache, camera, map_from_camera, stride)
    else:
        chosen = _splat_compiled(cache, camera, centre, turn, stride)
    cell = (chosen >= 0).nonzero()[:, 0]
    index = chosen[cell]
    forward = cache.points.new_tensor(turn[2])
    depth = ((cache.points[index] - cache.points.new_tensor(centre)) * forward).sum(-1)
    return SplattedView(index, cell, depth, len(cell) / max(rows * columns, 1), rows, columns)


def splat_grid(
    cache: SurfaceCache, camera: Camera, map_from_camera: Tensor | np.ndarray, stride: int = 8,
) -> tuple[Tensor, Tensor]:
    """Choose as `splat` does, in plain torch and of fixed shape: index (N,), distance (N,).

    Cells without a point have index -1 and infinite distance. A pinhole camera and a pose on the
    CPU are needed for a GPU never to be waited for.
    """
    rows, columns = camera.height // stride, camera.width // stride
    centre, turn = _pose(map_from_camera)
    dx, dy, dz = (cache.points[:, k] - centre[k].item() for k in range(3))
    seen = torch.stack([turn[row, 0].item() * dx + turn[row, 1].item() * dy
                        + turn[row, 2].item() * dz for row in range(3)], dim=-1)
    distance = (dx * dx + dy * dy + dz * dz).sqrt()
    normals = cache.normals.to(distance.dtype)
    facing = normals[:, 0] * dx + normals[:, 1] * dy + normals[:, 2] * dz \
        <= AWAY * NORMAL_SCALE * distance
    u, v, inside = _pixels(camera, seen)
    column, row = (u + 0.5) / stride, (v + 0.5) / stride
    inside = inside & facing & (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
    # Points outside of the picture fall into one more cell, which is dropped at the end.
    row, column = (torch.where(inside, value, 0).long() for value in (row, column))
    cell = torch.where(inside, row * columns + column, rows * columns)
    front = _front(cell, distance, u, v, row, column, rows, columns, stride,
                   FOOTPRINT * cache.voxel * camera.fx)
    du = u - (column.to(u) * stride + (stride - 1) / 2)
    dv = v - (row.to(v) * stride + (stride - 1) / 2)
    offset = du * du + dv * dv
    behind = distance > front[cell] * FRONT + FRONT_VOXELS * cache.voxel
    cell = torch.where(behind, rows * columns, cell)
    # The bits of a positive float are ordered as it is, so this is nearest first, then lowest.
    numbers = torch.arange(len(cell), device=cell.device)
    key = (offset.view(torch.int32).long() << 32) | numbers
    none = torch.iinfo(torch.int64).max
    best = torch.full((rows * columns + 1,), none, device=cell.device)
    best = best.scatter_reduce(0, cell, key, 'amin')[:-1]
    index = torch.where(best == none, -1, best & 0xffffffff)
    if not len(cache):
        return index, torch.full_like(index, torch.inf, dtype=torch.float32)
    far = torch.where(index < 0, torch.inf, distance[index.clamp(min=0)])
    leaks = _leaks(far.view(rows, columns)).view(-1)
    return torch.where(leaks, -1, index), torch.where(leaks, torch.inf, far)


def _pose(map_from_camera: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the camera's centre (3,) and camera_from_map (3, 3), float32."""
    pose = torch.as_tensor(map_from_camera).cpu().double().numpy()
    return pose[:3, 3].astype(np.float32), np.ascontiguousarray(pose[:3, :3].T, np.float32)


def _splat_compiled(
    cache: SurfaceCache, camera: Camera, centre: np.ndarray, turn: np.ndarray, stride: int,
) -> Tensor:
    """Choose one point of the cache for each cell (N,); -1: none."""
    single = np.float32
    grid = (camera.height // stride, camera.width // stride, stride)
    points, normals, starts = (
        value.numpy() for value in (cache.points, cache.normals, cache.tile_starts))
    planes = _frustum(camera) @ turn.astype(np.float64)
    tiles = splat_loops.visible_tiles(
        cache.tile_boxes.numpy(), planes, -planes @ centre.astype(np.float64), 0.01 * cache.voxel)
    looked_at = int((starts[tiles + 1] - starts[tiles]).sum())
    note_work('splat', _POINT_FLOPS * looked_at, [
        (value, looked_at * value.shape[1] * value.element_size())
        for value in (cache.points, cache.normals)])
    limit = single(AWAY * NORMAL_SCALE)
    if camera.is_pinhole:
        lens = np.array((camera.fx, camera.fy, camera.cx, camera.cy), single)
        index, cell, distance, u, v = splat_loops.gather_pinhole(
            points, normals, starts, tiles, centre, turn, lens, grid, single(_LEAST_DEPTH), limit)
    else:
        index, seen, distance = splat_loops.gather_facing(
            points, normals, starts, tiles, centre, turn, limit)
        u, v, inside = _pixels(camera, torch.from_numpy(seen))
        column, row = (u + 0.5) / stride, (v + 0.5) / stride
        inside &= (column >= 0) & (column < grid[1]) & (row >= 0) & (row < grid[0])
        cell = (row.int() * grid[1] + column.int())[inside].numpy()
        index, distance, u, v = (
            value[inside.numpy()] for value in (index, distance, u.numpy(), v.numpy()))
    front = splat_loops.front_surface(
        cell, distance, u, v, grid, single(FOOTPRINT * cache.voxel * camera.fx))
    chosen = splat_loops.nearest_centre(
        cell, distance, u, v, front, grid, single(FRONT), single(FRONT_VOXELS * cache.voxel))
    chosen = splat_loops.without_leaks(chosen, distance, grid, single(LEAK))
    return torch.from_numpy(np.where(chosen < 0, -1, index[chosen]) if len(index) else chosen)


def _pixels(camera: Camera, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project points (m, 3), camera frame: u (m,), v (m,), and whether they are ones (m,)."""
    if camera.is_pinhole:
        x, y, z = seen.unbind(-1)
        ahead = z > _LEAST_DEPTH
        z = torch.where(ahead, z, 1)
        return x / z * camera.fx + camera.cx, y / z * camera.fy + camera.cy, ahead
    u, v = camera.project(seen).unbind(-1)
    return u, v, camera.sees(seen)


def _front(
    cell: Tensor, distance: Tensor, u: Tensor, v: Tensor, row: Tensor, column: Tensor, rows: int,
    columns: int, stride: int, footprint: float,
) -> Tensor:
    """Give the distance (N + 1,) of the nearest surface in each cell and in none."""
    front = distance.new_full((rows * columns + 1,), torch.inf)
    front = front.scatter_reduce(0, cell, distance, 'amin')
    radius = torch.as_tensor(footprint, dtype=distance.dtype) / distance
    near = (distance <= torch.as_tensor(footprint, dtype=distance.dtype) / (stride / 2)) \
        & (cell < rows * columns)
    for down in (-1, 0, 1):
        dv = v - ((row + down).to(v) * stride + (stride - 1) / 2)
        for right in (-1, 0, 1):
            du = u - ((column + right).to(u) * stride + (stride - 1) / 2)
            covers = near & (du * du + dv * dv <= radius * radius)
            covers &= (row + down >= 0) & (row + down < rows)
            covers &= (column + right >= 0) & (column + right < columns)
            other = torch.where(covers, cell + down * columns + right, rows * columns)
            front = front.scatter_reduce(0, other, distance, 'amin')
    return front


def _leaks(distance: Tensor) -> Tensor:
    """Tell which cells (rows, columns) lie between nearer ones in 3 of 4 directions."""
    rows, columns = distance.shape
    around = torch.nn.functional.pad(distance, (1, 1, 1, 1), value=torch.inf)
    limit = distance * LEAK

    def nearer(down: int, right: int) -> Tensor:
        return around[1 + down:1 + down + rows, 1 + right:1 + right + columns] < limit

    pairs = sum((nearer(-down, -right) & nearer(down, right)).int()
                for down, right in ((0, 1), (1, -1), (1, 0), (1, 1)))
    return (pairs >= 3) & distance.isfinite()


@lru_cache(maxsize=64)
def _frustum(camera: Camera) -> np.ndarray:
    """Planes (P, 3) through the camera's centre, camera frame; plane @ point >= 0 is inside."""
    right, bottom = camera.width - 0.5, camera.height - 0.5
    u, v = torch.linspace(-0.5, right, 33), torch.linspace(-0.5, bottom, 33)
    border = torch.cat([
        torch.stack((u, torch.full_like(u, edge)), -1) for edge in (-0.5, bottom)] + [
        torch.stack((torch.full_like(v, edge), v), -1) for edge in (-0.5, right)])
    x, y, z = camera.rays(border.double()).unbind(-1)
    ahead = bool((z > 0).all())
    if not ahead or max((x / z).abs().max(), (y / z).abs().max()) > _WIDE:
        return np.array([[0.0, 0.0, 1.0]] * ahead).reshape(-1, 3)
    # Between the samples of a curved border it may reach a little further.
    slack = 0.0 if camera.is_pinhole else 0.01
    low_x, high_x = (x / z).min().item() - slack, (x / z).max().item() + slack
    low_y, high_y = (y / z).min().item() - slack, (y / z).max().item() + slack
    return np.array([[0, 0, 1], [1, 0, -low_x], [-1, 0, high_x], [0, 1, -low_y], [0, -1, high_y]],
                    dtype=np.float64)
