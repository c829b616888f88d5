"""Plane sweep: how well the neighbours of a picture match it at each of D depths a pixel.

For every depth the neighbours are warped onto the picture as if all of it lay there, and compared
with it by normalised cross-correlation in small windows (Collins, CVPR 1996; Gallup et al., CVPR
2007). Letters: H x W pixels of the picture, N neighbours, D depths.
"""

import cv2
from nerfmatch_ros.radiance_field.hash_grid import as_many_threads_as_torch
import numba
import numpy as np

HIDDEN = np.float32(-1e6)  # grey value of a pixel that must not be used
WORST = 2.0  # cost of a depth at which no neighbour sees the pixel; equals 1 - (-1)
_NOTHING = np.float32(-2)  # below every correlation
_FLAT = 6e-5  # product of deviations below which a window says nothing: 2 of 255 grey values each
_STRIP = 32  # rows handled at a time, so that intermediate rows stay in the cache


def plane_sweep(
    picture: np.ndarray, neighbours: list[np.ndarray], transforms: np.ndarray,
    inverse_depths: np.ndarray, window: int,
) -> np.ndarray:
    """Give the cost (H, D, W) float32 in [0, 2] of each depth: 1 - correlation.

    picture: (H, W) float32 grey in [-0.5, 0.5], HIDDEN where unknown
    neighbours: N of the same kind, each of its own size
    transforms: (N, 3, 4), from (x, y, 1, 1 / z) of the picture to homogeneous neighbour pixels
    inverse_depths: (D,) 1 / metres
    window: pixels, side of the correlation window, odd

    The cost is of the best half of the neighbours that see a pixel, so that it does not suffer
    where some are occluded. A single one that sees it is trusted half.
    """
    as_many_threads_as_torch()
    grey = np.where(picture < -1, np.float32(0), picture).astype(np.float32)
    box = {'ddepth': cv2.CV_32F, 'ksize': (window, window), 'normalize': False,
           'borderType': cv2.BORDER_CONSTANT}  # zeros outside: sums over the window's inside
    share = 1 / cv2.boxFilter(np.ones_like(grey), **box)
    mean = share * cv2.boxFilter(grey, **box)
    variance = share * cv2.boxFilter(grey * grey, **box) - mean * mean
    sizes = np.array([other.shape for other in neighbours], np.int64)
    starts = np.cumsum([0] + [other.size for other in neighbours[:-1]])
    pixels = np.concatenate([np.asarray(other, np.float32).ravel() for other in neighbours])
    cost = np.empty((grey.shape[0], len(inverse_depths), grey.shape[1]), np.float32)
    _sweep(grey, mean, np.sqrt(np.maximum(variance, 0)), share, pixels, starts, sizes,
           np.asarray(transforms, np.float32), np.asarray(inverse_depths, np.float32),
           window // 2, (len(neighbours) + 1) // 2, cost)
    return cost


@numba.njit(parallel=True, fastmath=True, cache=True)
def _sweep(grey, mean, deviation, share, pixels, starts, sizes, transforms, inverse_depths,
           radius, most, cost):
    height, width = grey.shape
    for strip in numba.prange((height + _STRIP - 1) // _STRIP):
        first = strip * _STRIP
        last = min(height, first + _STRIP)
        base = max(0, first - radius)
        end = min(height, last + radius)
        warped = np.empty((end - base, width), np.float32)
        unseen = np.empty((end - base, width), np.bool_)
        u = np.empty(width, np.float32)
        v = np.empty(width, np.float32)
        sums = np.zeros((3, width + 2 * radius), np.float32)
        best = np.empty((most, last - first, width), np.float32)
        for d in range(len(inverse_depths)):
            best[:] = _NOTHING
            for n in range(len(starts)):
                seen = 0
                for y in range(base, end):
                    seen += _warp_row(y, transforms[n], inverse_depths[d], pixels, starts[n],
                                      sizes[n, 0], sizes[n, 1], u, v, warped[y - base],
                                      unseen[y - base])
                if not seen:
                    continue
                sums[:] = 0
                for y in range(base, min(end, first + radius)):
                    _add_row(sums, warped[y - base], grey[y], radius, np.float32(1))
                for y in range(first, last):
                    if y + radius < end:
                        _add_row(sums, warped[y + radius - base], grey[y + radius], radius,
                                 np.float32(1))
                    _correlate_row(sums, share[y], mean[y], deviation[y], unseen[y - base],
                                   radius, best[:, y - first])
                    if y - radius >= base:
                        _add_row(sums, warped[y - radius - base], grey[y - radius], radius,
                                 np.float32(-1))
            for y in range(first, last):
                for x in range(width):
                    total = np.float32(0)
                    count = 0
                    for k in range(most):
                        if best[k, y - first, x] > -1.5:
                            total += best[k, y - first, x]
                            count += 1
                    if count == 0:
                        cost[y, d, x] = WORST
                    else:
                        cost[y, d, x] = 1 - total / max(count, min(2, most))


@numba.njit(fastmath=True)
def _warp_row(y, transform, inverse_depth, pixels, start, rows, columns, u, v, warped, unseen):
    """Look up a row of the picture in a neighbour; gives how many of its pixels are seen there."""
    a = transform[0, 1] * y + transform[0, 2] + transform[0, 3] * inverse_depth
    b = transform[1, 1] * y + transform[1, 2] + transform[1, 3] * inverse_depth
    c = transform[2, 1] * y + transform[2, 2] + transform[2, 3] * inverse_depth
    right, bottom = np.float32(columns - 1), np.float32(rows - 1)
    for x in range(len(warped)):
        z = transform[2, 0] * x + c
        ahead = z > 1e-6
        scale = 1 / max(z, np.float32(1e-6))
        across = (transform[0, 0] * x + a) * scale
        down = (transform[1, 0] * x + b) * scale
        unseen[x] = not (ahead and across >= 0 and across <= right
                         and down >= 0 and down <= bottom)
        u[x] = min(max(across, np.float32(0)), right)
        v[x] = min(max(down, np.float32(0)), bottom)
    seen = 0
    for x in range(len(warped)):
        i = min(np.int64(u[x]), columns - 2)
        j = min(np.int64(v[x]), rows - 2)
        p = u[x] - np.float32(i)
        q = v[x] - np.float32(j)
        k = start + j * columns + i
        above = pixels[k] + p * (pixels[k + 1] - pixels[k])
        below = pixels[k + columns] + p * (pixels[k + columns + 1] - pixels[k + columns])
        value = above + q * (below - above)
        if value < -1:
            value = np.float32(0)
            unseen[x] = True
        warped[x] = value
        seen += not unseen[x]
    return seen


@numba.njit(fastmath=True)
def _add_row(sums, warped, grey, radius, sign):
    for x in range(len(warped)):
        value = sign * warped[x]
        sums[0, x + radius] += value
        sums[1, x + radius] += value * warped[x]
        sums[2, x + radius] += value * grey[x]


@numba.njit(fastmath=True)
def _correlate_row(sums, share, mean, deviation, unseen, radius, best):
    """Put the correlations of a row among its best so far (M, W), sorted from the best down."""
    for x in range(len(share)):
        total = np.float32(0)
        squares = np.float32(0)
        products = np.float32(0)
        for k in range(2 * radius + 1):
            total += sums[0, x + k]
            squares += sums[1, x + k]
            products += sums[2, x + k]
        other = total * share[x]
        spread = np.sqrt(max(squares * share[x] - other * other, np.float32(0)))
        value = (products * share[x] - mean[x] * other) / (
            deviation[x] * spread + np.float32(_FLAT))
        if unseen[x]:
            value = _NOTHING
        for k in range(len(best)):
            larger = max(best[k, x], value)
            value = min(best[k, x], value)
            best[k, x] = larger
