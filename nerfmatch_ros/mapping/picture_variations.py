"""Making a photograph harder to localize, in ways that leave its true pose as it is."""

from collections.abc import Sequence

import cv2
from nerfmatch_ros.mapping.augmentation import motion_kernel
import numpy as np

KINDS = ('plain', 'noise', 'blur', 'dark', 'occluded', 'foreign')
# Mildest and hardest of each kind; in between geometrically.
_RANGES = {
    'noise': (0.03, 0.3),  # std, colours in [0, 1]
    'blur': (0.01, 0.08),  # length of the motion, share of the longer side
    'dark': (0.5, 0.04),  # factor on the colours
    'occluded': (0.15, 0.8),  # share of the pixels under patches of one colour
    'foreign': (0.15, 0.7),  # share of the pixels under pieces of other photographs
}
_DARK_NOISE = 0.01  # std of the noise that is left in the dark
_PATCH_SIDE = (0.15, 0.4)  # shares of the picture's sides
_MOST_PATCHES = 100


def vary(
    picture: np.ndarray, kind: str, hardness: float, others: Sequence[np.ndarray],
    random: np.random.Generator,
) -> np.ndarray:
    """Give a harder version of a picture (H, W, 3) uint8.

    kind: one of KINDS; hardness: 0 to 1
    others: pictures (h, w, 3) uint8 of other views for 'foreign'; the picture upside down where
    there are none
    """
    if kind == 'plain':
        return picture
    if kind not in _RANGES:
        raise ValueError(f"variation '{kind}' is unknown; known: {', '.join(KINDS)}")
    mild, hard = _RANGES[kind]
    strength = mild * (hard / mild) ** hardness
    if kind == 'noise':
        return _noisy(picture, strength, random)
    if kind == 'blur':
        length = max(strength * max(picture.shape), 2.0)
        return cv2.filter2D(picture, -1, motion_kernel(length, random.uniform(0, np.pi)),
                            borderType=cv2.BORDER_REPLICATE)
    if kind == 'dark':
        return _noisy((picture * strength).astype(np.uint8), _DARK_NOISE, random)
    if kind == 'occluded':
        return _patched(picture, strength, None, random)
    return _patched(picture, strength, list(others) or [picture[::-1]], random)


def _noisy(picture: np.ndarray, std: float, random: np.random.Generator) -> np.ndarray:
    noise = 255 * std * random.standard_normal(picture.shape, dtype=np.float32)
    return np.clip(picture + noise, 0, 255).round().astype(np.uint8)


def _patched(
    picture: np.ndarray, share: float, sources: list[np.ndarray] | None,
    random: np.random.Generator,
) -> np.ndarray:
    """Lay rectangles over a share of the pixels: of one colour each, or cut from other pictures.

    Each comes from another place of another picture, so that no second pose explains them all.
    """
    result = picture.copy()
    height, width = picture.shape[:2]
    covered = np.zeros((height, width), bool)
    for _ in range(_MOST_PATCHES):
        if covered.mean() >= share:
            break
        rows, columns = (max(1, round(random.uniform(*_PATCH_SIDE) * side))
                         for side in (height, width))
        y, x = random.integers(height - rows + 1), random.integers(width - columns + 1)
        patch = random.integers(0, 256, 3)
        if sources is not None:
            source = sources[random.integers(len(sources))]
            source = cv2.resize(source, (width, height), interpolation=cv2.INTER_AREA)
            v, u = random.integers(height - rows + 1), random.integers(width - columns + 1)
            patch = source[v:v + rows, u:u + columns]
        result[y:y + rows, x:x + columns] = patch
        covered[y:y + rows, x:x + columns] = True
    return result
