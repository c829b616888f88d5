"""Keyframes of a drive: where it moved on, and the sharpest frame of each stretch of the way."""

from bisect import bisect_left

import cv2
import numpy as np

SHARPNESS_WIDTH = 640  # pixels across that a picture is judged at, if it is larger
_BLOCK = 512  # frames looked ahead at a time
_LONGEST_STEP = 5.0  # from start to start, in medians of all steps


def increasing(stamps: np.ndarray) -> np.ndarray:
    """
    Tell which stamps (N,) to keep, (N,) bool, so that they increase strictly and most are kept.

    One stamp far in the future costs itself, not all that come after it.
    """
    tails: list[int] = []  # the last index of the best sequence of each length
    before = np.full(len(stamps), -1)
    values: list[int] = []
    for index, stamp in enumerate(stamps.tolist()):
        place = bisect_left(values, stamp)
        if place < len(values) and values[place] == stamp:
            continue  # of equal stamps the first counts
        before[index] = tails[place - 1] if place else -1
        if place == len(values):
            values.append(stamp)
            tails.append(index)
        else:
            values[place], tails[place] = stamp, index
    kept = np.zeros(len(stamps), bool)
    index = tails[-1] if tails else -1
    while index >= 0:
        kept[index] = True
        index = int(before[index])
    return kept


def motion_segments(poses: np.ndarray, metres: float, radians: float) -> np.ndarray:
    """
    Give where the segments (S,) of a way begin; the first begins at 0.

    A segment ends before the first frame that is `metres` away from the segment's first one, or
    turned by `radians`; what shakes about its place stays in it. poses: (N, 4, 4) map_from_camera.
    Where one of them is 0 every frame is a segment of its own.
    """
    starts = [0] if len(poses) else []
    ahead = 1
    while ahead < len(poses):
        block = poses[ahead:ahead + _BLOCK]
        anchor = poses[starts[-1]]
        away = np.linalg.norm(block[:, :3, 3] - anchor[:3, 3], axis=1) >= metres
        away |= _angles(anchor[:3, :3], block[:, :3, :3]) >= radians
        first = int(np.argmax(away))
        if away[first]:
            starts.append(ahead + first)
            ahead = starts[-1] + 1
        else:
            ahead += len(block)
    return np.array(starts, np.int64)


def segments_within(
    poses: np.ndarray, metres: float, radians: float, most: int,
) -> tuple[np.ndarray, float]:
    """
    Give the starts of at most `most` segments (S,), and how many strides long they are.

    That is 1 where the strides as they are give few enough; else segments follow one another and
    share the way evenly. Where a stride is 0 they share the frames evenly.
    """
    starts = motion_segments(poses, metres, radians)
    if len(starts) <= most:
        return starts, 1.0
    if not metres or not radians:
        return even_segments(len(poses), most), 1.0
    # Measured from start to start, as what shakes about its place would make a long way of it.
    first, second = poses[starts[:-1]], poses[starts[1:]]
    moved = np.linalg.norm(second[:, :3, 3] - first[:, :3, 3], axis=1) / metres
    turned = _angles(first[:, :3, :3], second[:, :3, :3]) / radians
    steps = np.maximum(moved, turned)
    # A jump takes as little of the segments as the robot needs to look around.
    way = np.concatenate(([0.0], np.cumsum(np.minimum(steps, _LONGEST_STEP * np.median(steps)))))
    number = np.arange(most)
    nearest = np.searchsorted(way[:-1] + np.diff(way) / 2, number / most * way[-1])
    # No start twice, and for the last ones as many left as there are.
    chosen = np.maximum.accumulate(nearest - number) + number
    chosen = np.minimum(chosen, len(starts) - most + number)
    return starts[chosen], float(steps.sum() / most)


def even_segments(count: int, most: int) -> np.ndarray:
    """Give where at most `most` segments of equally many of `count` frames begin."""
    segments = min(count, most)
    return np.arange(segments, dtype=np.int64) * count // max(1, segments)


def spread_evenly(start: int, stop: int, most: int) -> list[int]:
    """Give at most `most` of the numbers from start to stop - 1, spread evenly."""
    count = stop - start
    if count <= most:
        return list(range(start, stop))
    return [start + (2 * k + 1) * count // (2 * most) for k in range(most)]


def sharpness(rgb: np.ndarray) -> float:
    """
    Give how much fine detail a picture (H, W, 3), uint8 RGB, shows.

    Meant to compare pictures of one view; it is the variance of the Laplacian of the grey levels
    (Pech-Pacheco et al., ICPR 2000).
    """
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    if width > SHARPNESS_WIDTH:
        size = (SHARPNESS_WIDTH, max(1, round(height * SHARPNESS_WIDTH / width)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def _angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Give the angles (N,), radians, between rotations (N, 3, 3) or (3, 3) and (N, 3, 3)."""
    trace = (first * second).sum(axis=(-2, -1))
    return np.arccos(np.clip((trace - 1) / 2, -1, 1))
