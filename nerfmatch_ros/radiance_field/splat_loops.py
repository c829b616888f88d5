"""Compiled loops of splatting: single precision throughout, in the order that `splatting` uses.

Constants are float32 too, because one of float64 would turn a whole expression into it and the
last bit of a result would no longer be that of torch.
"""

import numba
import numpy as np

_HALF = np.float32(0.5)
_NOWHERE = np.float32(np.inf)


@numba.njit(cache=True, nogil=True)
def visible_tiles(boxes, planes, offsets, margin):
    """Give the tiles (n,) whose box (T, 2, 3) lies on the inner side of all planes (P, 3).

    A point p is inside where planes @ p + offsets >= 0; margin: metres, added for rounding.
    """
    chosen = np.empty(len(boxes), np.int64)
    count = 0
    for tile in range(len(boxes)):
        inside = True
        for plane in range(len(planes)):
            total = offsets[plane] + margin
            for axis in range(3):
                slope = planes[plane, axis]
                total += slope * boxes[tile, 1 if slope > 0 else 0, axis]
            if total < 0:
                inside = False
                break
        if inside:
            chosen[count] = tile
            count += 1
    return chosen[:count]


@numba.njit(inline='always')
def _faces_away(normals, i, x, y, z, distance, limit):
    dot = (np.float32(normals[i, 0]) * x + np.float32(normals[i, 1]) * y
           + np.float32(normals[i, 2]) * z)
    return dot > limit * distance


@numba.njit(cache=True, nogil=True)
def gather_pinhole(points, normals, starts, tiles, centre, turn, lens, grid, least_depth, limit):
    """Find what falls into the grid of a pinhole camera.

    centre: (3,) of the camera, turn: (3, 3) camera_from_map; lens: fx, fy, cx, cy;
    grid: rows, columns, stride. Gives index (m,), cell (m,), distance (m,), and pixels u, v (m,).
    """
    total = 0
    for tile in tiles:
        total += starts[tile + 1] - starts[tile]
    index, cell = np.empty(total, np.int64), np.empty(total, np.int32)
    distance = np.empty(total, np.float32)
    us, vs = np.empty(total, np.float32), np.empty(total, np.float32)
    rows, columns, stride = grid[0], grid[1], np.float32(grid[2])
    wide, high = np.float32(columns), np.float32(rows)
    fx, fy, cx, cy = lens[0], lens[1], lens[2], lens[3]
    count = 0
    for tile in tiles:
        for i in range(starts[tile], starts[tile + 1]):
            dx = points[i, 0] - centre[0]
            dy = points[i, 1] - centre[1]
            dz = points[i, 2] - centre[2]
            z = turn[2, 0] * dx + turn[2, 1] * dy + turn[2, 2] * dz
            if not z > least_depth:
                continue
            x = turn[0, 0] * dx + turn[0, 1] * dy + turn[0, 2] * dz
            u = x / z * fx + cx
            column = (u + _HALF) / stride
            if not (column >= 0 and column < wide):
                continue
            y = turn[1, 0] * dx + turn[1, 1] * dy + turn[1, 2] * dz
            v = y / z * fy + cy
            row = (v + _HALF) / stride
            if not (row >= 0 and row < high):
                continue
            far = np.sqrt(dx * dx + dy * dy + dz * dz)
            if _faces_away(normals, i, dx, dy, dz, far, limit):
                continue
            index[count] = i
            cell[count] = np.int32(row) * columns + np.int32(column)
            distance[count] = far
            us[count] = u
            vs[count] = v
            count += 1
    return index[:count], cell[:count], distance[:count], us[:count], vs[:count]


@numba.njit(cache=True, nogil=True)
def gather_facing(points, normals, starts, tiles, centre, turn, limit):
    """Find what does not face away: index (m,), in the camera's frame (m, 3), distance (m,)."""
    total = 0
    for tile in tiles:
        total += starts[tile + 1] - starts[tile]
    index, distance = np.empty(total, np.int64), np.empty(total, np.float32)
    seen = np.empty((total, 3), np.float32)
    count = 0
    for tile in tiles:
        for i in range(starts[tile], starts[tile + 1]):
            dx = points[i, 0] - centre[0]
            dy = points[i, 1] - centre[1]
            dz = points[i, 2] - centre[2]
            far = np.sqrt(dx * dx + dy * dy + dz * dz)
            if _faces_away(normals, i, dx, dy, dz, far, limit):
                continue
            for row in range(3):
                seen[count, row] = turn[row, 0] * dx + turn[row, 1] * dy + turn[row, 2] * dz
            index[count] = i
            distance[count] = far
            count += 1
    return index[:count], seen[:count], distance[:count]


@numba.njit(cache=True, nogil=True)
def front_surface(cell, distance, us, vs, grid, footprint):
    """Give the distance (N,) of the nearest surface in each cell.

    A point covers a disc of radius footprint / distance pixels: it also hides what lies behind
    it in those of the eight cells around its own whose centre the disc covers.
    """
    rows, columns, stride = grid[0], grid[1], np.float32(grid[2])
    half = (stride - np.float32(1)) / np.float32(2)
    front = np.full(rows * columns, _NOWHERE, np.float32)
    # A disc that covers the centre of another cell reaches over half a cell at least.
    reach = footprint / (stride / np.float32(2))
    for k in range(len(cell)):
        far = distance[k]
        if far < front[cell[k]]:
            front[cell[k]] = far
        if far > reach:
            continue
        radius = footprint / far
        own_row, own_column = cell[k] // columns, cell[k] % columns
        for row in range(max(own_row - 1, 0), min(own_row + 2, rows)):
            dv = vs[k] - (np.float32(row) * stride + half)
            for column in range(max(own_column - 1, 0), min(own_column + 2, columns)):
                du = us[k] - (np.float32(column) * stride + half)
                other = row * columns + column
                if du * du + dv * dv <= radius * radius and far < front[other]:
                    front[other] = far
    return front


@numba.njit(cache=True, nogil=True)
def nearest_centre(cell, distance, us, vs, front, grid, share, slack):
    """Number (N,) of the front point nearest to the centre of each cell, of m; -1: none.

    Front points lie at most share x distance + slack behind the nearest surface.
    """
    columns, stride = grid[1], np.float32(grid[2])
    half = (stride - np.float32(1)) / np.float32(2)
    chosen = np.full(len(front), -1, np.int64)
    least = np.full(len(front), _NOWHERE, np.float32)
    for k in range(len(cell)):
        own = cell[k]
        if distance[k] > front[own] * share + slack:
            continue
        du = us[k] - (np.float32(own % columns) * stride + half)
        dv = vs[k] - (np.float32(own // columns) * stride + half)
        offset = du * du + dv * dv
        if offset < least[own]:
            least[own] = offset
            chosen[own] = k
    return chosen


@numba.njit(cache=True, nogil=True)
def without_leaks(chosen, distance, grid, nearer):
    """Give `chosen` (N,) without points between nearer ones on both sides, in 3 of 4 directions.

    nearer: share of a point's distance up to which its neighbours count as nearer.
    """
    rows, columns = grid[0], grid[1]
    kept = chosen.copy()
    for row in range(1, rows - 1):
        for column in range(1, columns - 1):
            own = row * columns + column
            if chosen[own] < 0:
                continue
            limit = distance[chosen[own]] * nearer
            pairs = 0
            for step in (1, columns - 1, columns, columns + 1):
                one, other = chosen[own - step], chosen[own + step]
                if one >= 0 and other >= 0 and distance[one] < limit \
                        and distance[other] < limit:
                    pairs += 1
            if pairs >= 3:
                kept[own] = -1
    return kept
