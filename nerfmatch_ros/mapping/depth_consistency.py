"""Which pixels of a depth map other photographs' depth maps confirm."""

from nerfmatch_ros.radiance_field.hash_grid import as_many_threads_as_torch
import numba
import numpy as np


def confirmations(
    depth: np.ndarray, others: list[np.ndarray], transforms: np.ndarray, agreement: float,
) -> np.ndarray:
    """Count how many other depth maps show the surface of each pixel where it is: (H, W) int64.

    depth: (H, W) float32 metres, 0 = unknown; others: N depth maps, each of its own size;
    transforms: (N, 3, 4), from (x, y, 1, 1 / z) of a pixel to homogeneous pixels of the others;
    agreement: largest difference of depth as a share of it
    """
    as_many_threads_as_torch()
    count = np.zeros(depth.shape, np.int64)
    for other, transform in zip(others, transforms):
        _confirm(depth, other, np.asarray(transform, np.float64), agreement, count)
    return count


@numba.njit(parallel=True, cache=True)
def _confirm(depth, other, transform, agreement, count):
    rows, columns = other.shape
    for y in numba.prange(depth.shape[0]):
        for x in range(depth.shape[1]):
            if depth[y, x] <= 0:
                continue
            inverse = 1 / depth[y, x]
            a, b, c = transform[:, 0] * x + transform[:, 1] * y + (
                transform[:, 2] + transform[:, 3] * inverse)
            if c <= 1e-9:
                continue
            u, v = a / c, b / c
            if u < -0.5 or v < -0.5 or u >= columns - 0.5 or v >= rows - 0.5:
                continue
            expected = c * depth[y, x]
            seen = other[int(v + 0.5), int(u + 0.5)]
            if abs(seen - expected) <= agreement * expected:
                count[y, x] += 1
