"""Semi-global matching: the depths of a cost volume, smooth but for true edges.

Along four directions the cheapest path through the volume is followed, on which a step of one
depth costs little and any other jump costs more (Hirschmueller, PAMI 2008). Letters: H x W pixels,
D depths; volumes are (H, D, W).
"""

from nerfmatch_ros.radiance_field.hash_grid import as_many_threads_as_torch
import numba
import numpy as np

_BLOCK = 64  # columns handled at a time


def smoothed(cost: np.ndarray, step: float, jump: float) -> np.ndarray:
    """Give the mean over four directions of the path costs (H, D, W) float32.

    cost: (H, D, W) float32; step: of a change by one depth; jump: of any larger change
    """
    as_many_threads_as_torch()
    total = np.zeros_like(cost)
    _down_and_up(cost, np.float32(step), np.float32(jump), total)
    _right_and_left(cost, np.float32(step), np.float32(jump), total)
    return total


def cheapest(volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the cheapest depth of each pixel -> index (H, W) int64, with fraction (H, W) float32.

    The fraction is where a parabola through the costs of the index and its neighbours has its
    lowest point; at the first and the last index, where there is none, it is the index itself.
    """
    index = volume.argmin(axis=1)
    inner = np.clip(index, 1, volume.shape[1] - 2)

    def at(k: np.ndarray) -> np.ndarray:
        return np.take_along_axis(volume, k[:, None], axis=1)[:, 0]

    before, here, after = at(inner - 1), at(inner), at(inner + 1)
    bend = np.maximum(before - 2 * here + after, 1e-6)
    offset = np.clip(0.5 * (before - after) / bend, -0.5, 0.5)
    return index, np.where(index == inner, index + offset, index).astype(np.float32)


@numba.njit(parallel=True, fastmath=True, cache=True)
def _down_and_up(cost, step, jump, total):
    height, depths, width = cost.shape
    for block in numba.prange((width + _BLOCK - 1) // _BLOCK):
        left = block * _BLOCK
        columns = min(width, left + _BLOCK) - left
        path = np.zeros((2, depths, columns), np.float32)  # of the row before and of this one
        lowest = np.zeros(columns, np.float32)
        for upwards in range(2):
            path[:] = 0
            for k in range(height):
                y = height - 1 - k if upwards else k
                before, here = k % 2, 1 - k % 2
                for x in range(columns):
                    lowest[x] = path[before, 0, x]
                for d in range(1, depths):
                    for x in range(columns):
                        lowest[x] = min(lowest[x], path[before, d, x])
                for d in range(depths):
                    nearer, farther = max(d - 1, 0), min(d + 1, depths - 1)
                    for x in range(columns):
                        beside = min(path[before, nearer, x], path[before, farther, x]) + step
                        reached = min(min(path[before, d, x], beside), lowest[x] + jump)
                        value = cost[y, d, left + x] + (reached - lowest[x])
                        path[here, d, x] = value
                        total[y, d, left + x] += np.float32(0.25) * value


@numba.njit(parallel=True, fastmath=True, cache=True)
def _right_and_left(cost, step, jump, total):
    height, depths, width = cost.shape
    for y in numba.prange(height):
        # Depths side by side, because a step goes from column to column.
        turned = np.empty((width, depths), np.float32)
        for d in range(depths):
            for x in range(width):
                turned[x, d] = cost[y, d, x]
        path = np.zeros((2, depths), np.float32)
        summed = np.zeros((width, depths), np.float32)
        for leftwards in range(2):
            path[:] = 0
            for k in range(width):
                x = width - 1 - k if leftwards else k
                before, here = k % 2, 1 - k % 2
                lowest = path[before, 0]
                for d in range(1, depths):
                    lowest = min(lowest, path[before, d])
                for d in range(depths):
                    beside = min(path[before, max(d - 1, 0)],
                                 path[before, min(d + 1, depths - 1)]) + step
                    reached = min(min(path[before, d], beside), lowest + jump)
                    value = turned[x, d] + (reached - lowest)
                    path[here, d] = value
                    summed[x, d] += np.float32(0.25) * value
        for d in range(depths):
            for x in range(width):
                total[y, d, x] += summed[x, d]
